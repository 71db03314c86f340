// SPDX-License-Identifier: Apache-2.0
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Comparator;
import java.util.HexFormat;
import java.util.List;
import java.util.stream.Stream;
import java.util.zip.ZipEntry;
import java.util.zip.ZipInputStream;

/**
 * Fetches MNN for Android into mnn/lib/arm64-v8a and mnn/include: {@code java FetchMnn.java}. Every file must have the
 * SHA-256 that mnn.sha256 says; the folder appears when all have. Gradle runs this; it can also be run by hand, with
 * another list and folder as arguments.
 */
final class FetchMnn {
    private static final String LIBRARY = ".*/arm64-v8a/lib[^/]+\\.so";

    /** The NDK brings its own, the same; and a JNI interface that we do not use. */
    private static final List<String> UNWANTED = List.of("libc++_shared.so", "libmnncore.so");

    public static void main(String[] arguments) throws IOException {
        Path list = Path.of(arguments.length > 0 ? arguments[0] : "mnn.sha256");
        Path target = Path.of(arguments.length > 1 ? arguments[1] : "mnn").toAbsolutePath();
        Path fresh = target.resolveSibling(target.getFileName() + ".part");
        try {
            delete(fresh);
            for (String line : Files.readAllLines(list)) {
                if (!line.startsWith("#")) {
                    String[] record = line.split(" +", 2);
                    place(fetch(URI.create(record[1]), record[0]), record[1], fresh);
                }
            }
            delete(target);
            Files.move(fresh, target);
        } catch (IOException | IllegalArgumentException fault) {
            delete(fresh);
            System.err.println(fault.getMessage() == null ? fault : fault.getMessage());
            System.exit(1);
        }
    }

    private static byte[] fetch(URI source, String expected) throws IOException {
        System.out.println(source);
        byte[] data;
        try (InputStream stream = source.toURL().openStream()) {
            data = stream.readAllBytes();
        } catch (IOException fault) {
            throw new IOException(source + " cannot be fetched (" + fault + "). Check the network, then try again.");
        }
        String found = sha256(data);
        if (!found.equals(expected)) {
            throw new IOException(source + " has SHA-256 " + found + "; expected " + expected + ". Do not use it.");
        }
        return data;
    }

    private static void place(byte[] data, String source, Path folder) throws IOException {
        if (!source.endsWith(".zip")) {
            write(data, folder.resolve("include").resolve(source.substring(source.lastIndexOf("/include/") + 9)));
            return;
        }
        try (ZipInputStream archive = new ZipInputStream(new ByteArrayInputStream(data))) {
            for (ZipEntry entry; (entry = archive.getNextEntry()) != null;) {
                String name = entry.getName().substring(entry.getName().lastIndexOf('/') + 1);
                if (entry.getName().matches(LIBRARY) && !UNWANTED.contains(name)) {
                    write(archive.readAllBytes(), folder.resolve("lib/arm64-v8a").resolve(name));
                }
            }
        }
    }

    private static void write(byte[] data, Path file) throws IOException {
        Files.createDirectories(file.getParent());
        Files.write(file, data);
    }

    private static void delete(Path folder) throws IOException {
        if (Files.exists(folder)) {
            try (Stream<Path> entries = Files.walk(folder)) {
                for (Path entry : entries.sorted(Comparator.reverseOrder()).toList()) {
                    Files.delete(entry);
                }
            }
        }
    }

    private static String sha256(byte[] data) {
        try {
            return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(data));
        } catch (NoSuchAlgorithmException fault) {
            throw new IllegalStateException(fault); // every Java has it
        }
    }
}
