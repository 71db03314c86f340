package org.deepmnn;

import java.io.File;
import java.io.IOException;
import java.lang.reflect.InvocationTargetException;
import java.nio.file.Files;
import java.util.Arrays;
import java.util.Objects;

/** Runs a static method of a class of scenarios: {@code Scenario CLASS METHOD FOLDER}; FOLDER/model is a model. */
final class Scenario {
    static File folder;

    /** 2, 3 and 4 bytes to a character, one char and two. */
    static final String TEXT = "Grüße, 世界! 🐳🧠 naïve €";

    public static void main(String[] arguments) throws Exception {
        folder = new File(arguments[2]);
        var scenario = Class.forName("org.deepmnn." + arguments[0]).getDeclaredMethod(arguments[1]);
        try {
            scenario.invoke(null);
        } catch (InvocationTargetException fault) {
            fault.getCause().printStackTrace();
            System.exit(1); // threads may be left; after success there must be none
        }
    }

    static File model() {
        return new File(folder, "model");
    }

    static void equal(Object found, Object expected) {
        if (!Objects.deepEquals(found, expected)) {
            throw new AssertionError("found " + show(found) + "; expected " + show(expected));
        }
    }

    static void contains(String found, String... parts) {
        for (String part : parts) {
            equal(found + (found.contains(part) ? "" : " without " + part), found);
        }
    }

    interface Step {
        void run() throws Exception;
    }

    /** The message of the exception of that kind that step must throw. */
    static String thrown(Class<? extends Exception> kind, Step step) {
        try {
            step.run();
        } catch (Exception fault) {
            equal(fault.getClass(), kind);
            return fault.getMessage();
        }
        throw new AssertionError("nothing thrown; expected " + kind);
    }

    static void write(File file, String text) throws IOException {
        Files.createDirectories(file.getParentFile().toPath());
        Files.write(file.toPath(), text.getBytes("UTF-8"));
    }

    private static String show(Object value) {
        return value instanceof int[] ? Arrays.toString((int[]) value) : String.valueOf(value);
    }
}
