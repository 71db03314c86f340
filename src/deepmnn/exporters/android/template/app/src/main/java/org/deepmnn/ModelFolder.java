// SPDX-License-Identifier: Apache-2.0
package org.deepmnn;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.zip.CRC32;

/** A folder that {@code deepmnn export} wrote: found, and checked for files that did not arrive whole. */
public final class ModelFolder {
    private static final String MANIFEST = "deepmnn.json";

    /** A file's record in the manifest: its name and its size. */
    private static final Pattern FILE = Pattern.compile("\"([^\"]+)\"\\s*:\\s*\\{[^{}]*\"nbytes\"\\s*:\\s*(\\d+)");

    private ModelFolder() {}

    /** The folder {@code name} in the first of {@code roots} that has it; a root may be null or not be there. */
    public static File find(String name, File... roots) throws MnnException {
        StringBuilder places = new StringBuilder();
        for (File root : roots) {
            File folder = new File(root, name);
            if (root != null && new File(folder, "config.json").isFile()) {
                return folder;
            }
            places.append(places.length() == 0 ? "" : " or ").append(root);
        }
        throw new MnnException("no model " + name, "it in " + places, "Push the exported folder with adb.");
    }

    /** Throws unless every file of the manifest is there in full. */
    static void check(File folder) throws MnnException {
        Matcher file = FILE.matcher(new String(manifest(folder), StandardCharsets.UTF_8));
        if (!file.find()) {
            throw new MnnException(MANIFEST + " lists no files", "what deepmnn export writes", "Export it anew.");
        }
        do {
            long found = new File(folder, file.group(1)).length();
            long expected = Long.parseLong(file.group(2));
            if (found != expected) {
                String size = file.group(1) + " has " + found + " bytes";
                throw new MnnException(size, expected + "", "Push the folder again.");
            }
        } while (file.find());
    }

    /**
     * The model's own folder below {@code cachePath}, new and empty if this model was not there before. MNN's cache
     * files do not say whose weights they hold: another model, or another export of this one, must not find them.
     */
    static File cache(File folder, File cachePath) throws MnnException {
        CRC32 crc = new CRC32(); // of the manifest, which has the CRC of every other file
        crc.update(manifest(folder));
        String prefix = folder.getName() + "-";
        File cache = new File(cachePath, prefix + String.format("%08x", crc.getValue()));
        File[] older = cachePath.listFiles((dir, name) -> name.matches(Pattern.quote(prefix) + "[0-9a-f]{8}"));
        for (File old : older == null ? new File[0] : older) {
            if (!old.equals(cache)) {
                delete(old);
            }
        }
        if (!cache.isDirectory() && !cache.mkdirs()) {
            throw new MnnException(cache + " cannot be made", "a folder to write to", "Choose another cachePath.");
        }
        return cache;
    }

    private static byte[] manifest(File folder) throws MnnException {
        File file = new File(folder, MANIFEST);
        try {
            return Files.readAllBytes(file.toPath());
        } catch (IOException fault) {
            throw new MnnException(file + " cannot be read", "an exported model", "Push the whole folder with adb.");
        }
    }

    private static void delete(File file) {
        File[] inside = file.listFiles();
        for (File entry : inside == null ? new File[0] : inside) {
            delete(entry);
        }
        file.delete();
    }
}
