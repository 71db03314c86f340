// SPDX-License-Identifier: Apache-2.0
package org.deepmnn;

import java.io.File;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.function.Predicate;

/**
 * A model in MNN, opened from a folder. Everything here blocks and belongs to the thread that opened it;
 * {@link DeepSeek} has a thread for it and calls back.
 */
public final class MnnInterpreter implements AutoCloseable {
    private static final int TEXT_BYTES = 4096; // more than any token's text

    private final Thread owner = Thread.currentThread();
    private final int contextTokens;
    private long handle;

    /** Opens the model: seconds, and gigabytes. */
    public MnnInterpreter(File folder, MnnConfig config) throws MnnException {
        ModelFolder.check(folder);
        File cache = config.cachePath() == null ? null : ModelFolder.cache(folder, config.cachePath());
        try {
            System.loadLibrary("deepmnn");
        } catch (UnsatisfiedLinkError fault) {
            throw new MnnException(fault.getMessage(), "libdeepmnn.so and MNN's libraries", "Build for arm64-v8a.");
        }
        contextTokens = config.contextTokens();
        handle = open(utf8(new File(folder, "config.json").getPath()), utf8(config.json(cache)), config.cores());
    }

    /**
     * Answers a chat of one or more messages, with at most {@code maxNewTokens} tokens. What the KV cache already has
     * of it is not computed again. {@code text} gets whole characters, token by token, an empty piece where a token
     * completes none; when it returns false, the answer ends there.
     */
    public Generation generate(List<Message> chat, int maxNewTokens, Predicate<String> text) throws MnnException {
        checkThread();
        if (handle == 0) {
            throw new IllegalStateException("the model is closed");
        }
        byte[][] messages = new byte[2 * chat.size()][];
        for (int i = 0; i < chat.size(); i++) {
            messages[2 * i] = utf8(chat.get(i).role);
            messages[2 * i + 1] = utf8(chat.get(i).content);
        }
        long start = System.nanoTime();
        long[] prefilled = {0};
        Utf8Stream stream = new Utf8Stream(TEXT_BYTES, piece -> {
            prefilled[0] = prefilled[0] == 0 ? System.nanoTime() : prefilled[0];
            return text.test(piece);
        });
        long[] counts = generate(handle, messages, contextTokens, maxNewTokens, stream.bytes, stream);
        double decoding = (System.nanoTime() - prefilled[0]) / 1e9;
        text.test(stream.finish());
        return new Generation(counts, (prefilled[0] - start) / 1e9, decoding);
    }

    /** Gives all memory back. Closing twice is fine. */
    @Override
    public void close() {
        checkThread();
        close(handle);
        handle = 0;
    }

    private void checkThread() {
        if (Thread.currentThread() != owner) {
            throw new IllegalStateException("the model belongs to the thread " + owner.getName());
        }
    }

    private static byte[] utf8(String text) {
        return text.getBytes(StandardCharsets.UTF_8); // JNI's own strings are modified UTF-8: no emoji survives
    }

    private static native long open(byte[] configPath, byte[] settings, int[] cores) throws MnnException;

    private static native void close(long handle);

    /** Returns tokens of the prompt, reused ones, new ones, and the ordinal of {@link Generation.Finish}. */
    private static native long[] generate(
            long handle, byte[][] messages, int contextTokens, int maxNewTokens, ByteBuffer bytes, Utf8Stream stream)
            throws MnnException;
}
