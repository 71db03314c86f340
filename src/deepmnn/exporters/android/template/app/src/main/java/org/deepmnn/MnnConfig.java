// SPDX-License-Identifier: Apache-2.0
package org.deepmnn;

import java.io.File;
import java.util.LinkedHashMap;
import java.util.Locale;
import java.util.Map;

/** How MNN runs a model. What is not set here stays as the model folder's config.json has it. */
public final class MnnConfig {
    /** MNN's three steps of precision, memory and power. */
    public enum Level { LOW, NORMAL, HIGH }

    private final Map<String, String> json = new LinkedHashMap<>();
    private int[] cores = {};
    private File cachePath;
    private int contextTokens = 4096;

    public MnnConfig() {
        int8KvCache(false);
    }

    MnnConfig(MnnConfig other) {
        json.putAll(other.json);
        cores = other.cores;
        cachePath = other.cachePath;
        contextTokens = other.contextTokens;
    }

    /** Threads of one model, 1 or more; best as many as the phone has big cores. */
    public MnnConfig threads(int count) {
        return set("thread_num", Integer.toString(positive(count, "threads")));
    }

    /**
     * Where MNN keeps the weights as its kernels want them, mapped into memory instead of loaded, so that the system
     * can drop them when memory is short. Takes about as much disk as llm.mnn.weight; every model gets a folder of its own
     * in there. With {@code memory(LOW)} the files stay, and the next start is quick; MNN 3.6.1 cannot read them back
     * otherwise, and writes them at every start. Not the system's cache directory: that loses single files.
     */
    public MnnConfig cachePath(File directory) {
        cachePath = directory;
        return this;
    }

    /** LOW computes in fp16 where the phone can, HIGH in fp32. */
    public MnnConfig precision(Level level) {
        return set("precision", quote(level));
    }

    /** LOW quantises activations to int8 on the fly: quicker, and less exact. */
    public MnnConfig memory(Level level) {
        return set("memory", quote(level));
    }

    /** HIGH binds MNN's threads to big cores, LOW to little ones, NORMAL leaves them to the system. */
    public MnnConfig power(Level level) {
        cores = new int[0];
        return set("power", quote(level));
    }

    /**
     * Binds the thread that opens the model, and with it the threads that MNN starts, to these cores, instead of
     * {@link #power}. See {@link CpuCores#fastest}. MNN's threads live as long as the process: the first model counts.
     */
    public MnnConfig cores(int... numbers) {
        for (int number : numbers) {
            if (number < 0 || number > 63) {
                throw new IllegalArgumentException("core " + number + "; expected 0 to 63");
            }
        }
        power(Level.NORMAL);
        cores = numbers.clone();
        return this;
    }

    /**
     * Keeps keys and values as int8: a smaller cache, less exact; off unless asked for here. MNN 3.6.1 quantises keys
     * against a maximum that moves with every further piece of prompt, and leaves the older keys as they are: with int8
     * the whole chat is read again at every turn, in one piece.
     */
    public final MnnConfig int8KvCache(boolean on) {
        set("attention_mode", on ? "10" : "8"); // 8: flash attention, + 2: int8 keys and values
        json.remove("chunk");
        if (on) {
            set("chunk", "0");
        }
        return set("reuse_kv", Boolean.toString(!on));
    }

    /** Tokens that a chat may have, prompt and answer together. */
    public MnnConfig contextTokens(int count) {
        contextTokens = positive(count, "context tokens");
        return this;
    }

    int contextTokens() {
        return contextTokens;
    }

    int[] cores() {
        return cores;
    }

    File cachePath() {
        return cachePath;
    }

    /** The settings as MNN reads them; {@code cache} is the model's own folder in the cache path, or null. */
    String json(File cache) {
        MnnConfig all = new MnnConfig(this);
        all.set("use_mmap", Boolean.toString(cache != null)); // never MNN's default place, the working directory
        if (cache != null) {
            all.set("tmp_path", quote(cache.getAbsolutePath()));
            all.set("use_cached_mmap", Boolean.toString(quote(Level.LOW).equals(json.get("memory"))));
        }
        StringBuilder text = new StringBuilder();
        all.json.forEach((key, value) ->
                text.append(text.length() == 0 ? "{" : ",").append(quote(key)).append(":").append(value));
        return text.append("}").toString();
    }

    private MnnConfig set(String key, String value) {
        json.put(key, value);
        return this;
    }

    private static int positive(int count, String what) {
        if (count < 1) {
            throw new IllegalArgumentException(count + " " + what + "; expected 1 or more");
        }
        return count;
    }

    private static String quote(Object value) {
        String text = value instanceof Level ? ((Level) value).name().toLowerCase(Locale.ROOT) : value.toString();
        StringBuilder quoted = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            quoted.append(c == '"' || c == '\\' || c < ' ' ? String.format("\\u%04x", (int) c) : String.valueOf(c));
        }
        return quoted.append('"').toString();
    }
}
