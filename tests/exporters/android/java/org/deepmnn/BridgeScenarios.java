package org.deepmnn;

import static org.deepmnn.Scenario.TEXT;
import static org.deepmnn.Scenario.contains;
import static org.deepmnn.Scenario.equal;
import static org.deepmnn.Scenario.folder;
import static org.deepmnn.Scenario.model;
import static org.deepmnn.Scenario.thrown;
import static org.deepmnn.Scenario.write;

import java.io.File;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** The interpreter over the real JNI bridge. */
final class BridgeScenarios {
    private static Generation last;

    private static String ask(MnnInterpreter model, Message... chat) throws MnnException {
        StringBuilder answer = new StringBuilder();
        last = model.generate(Arrays.asList(chat), 1000, piece -> answer.append(piece).length() >= 0);
        return answer.toString();
    }

    private static void counts(int prompt, int reused, int made, Generation.Finish finish) {
        equal(new int[] {last.promptTokens, last.reusedTokens, last.newTokens}, new int[] {prompt, reused, made});
        equal(last.finish, finish);
        equal(last.tokensPerSecond() > 0, made > 0);
    }

    /** A token is a byte here: characters must come out whole, and go in whole. */
    static void characters() throws Exception {
        List<String> pieces = new ArrayList<>();
        try (MnnInterpreter model = new MnnInterpreter(model(), new MnnConfig())) {
            last = model.generate(List.of(Message.user(TEXT)), 100, pieces::add);
        }
        equal(String.join("", pieces), TEXT);
        int bytes = TEXT.getBytes(StandardCharsets.UTF_8).length;
        equal(pieces.size(), 1 + bytes + 1); // after the prompt, after every token, at the end
        equal(pieces.stream().allMatch(piece -> piece.codePointCount(0, piece.length()) <= 1), true);
        counts(bytes + 16, 0, bytes, Generation.Finish.END);
    }

    /** Cut off inside of a character: nothing is lost silently. */
    static void cut() throws Exception {
        StringBuilder answer = new StringBuilder();
        try (MnnInterpreter model = new MnnInterpreter(model(), new MnnConfig())) {
            last = model.generate(List.of(Message.user("a世")), 2, piece -> answer.append(piece).length() >= 0);
        }
        equal(answer.toString(), "a\ufffd");
        equal(last.finish, Generation.Finish.LENGTH);
    }

    static void turns() throws Exception {
        try (MnnInterpreter model = new MnnInterpreter(model(), new MnnConfig())) {
            Message one = Message.user("one"), two = Message.user("first?");
            equal(ask(model, one), "one");
            counts(19, 0, 3, Generation.Finish.END);
            equal(ask(model, one, Message.assistant("one"), two), "one");
            counts(45, 22, 3, Generation.Finish.END);
            equal(ask(model, one, Message.assistant("changed"), two), "one"); // from there on anew
            counts(49, 19, 3, Generation.Finish.END);
            equal(ask(model, one, Message.assistant("changed"), two), "one"); // the last token has to run again
            counts(49, 48, 3, Generation.Finish.END);
            equal(ask(model, Message.system("be brief"), two), "first?"); // nothing in common
            counts(38, 0, 6, Generation.Finish.END);
        }
    }

    static void int8() throws Exception {
        try (MnnInterpreter model = new MnnInterpreter(model(), new MnnConfig().int8KvCache(true))) {
            Message question = Message.user("settings?");
            contains(ask(model, question), "\"attention_mode\":10", "\"reuse_kv\":false", "\"chunk\":0");
            equal(ask(model, question, Message.assistant("x"), Message.user("first?")), "settings?");
            equal(last.reusedTokens, 0);
        }
    }

    static void stop() throws Exception {
        try (MnnInterpreter model = new MnnInterpreter(model(), new MnnConfig())) {
            for (int after = 0; after < 4; after++) {
                int[] seen = {-1};
                int limit = after;
                last = model.generate(List.of(Message.user("count!")), 100, piece -> ++seen[0] < limit);
                counts(22, after == 0 ? 0 : 21, after, Generation.Finish.STOPPED);
            }
            equal(ask(model, Message.user("still here")), "still here");
        }
    }

    static void context() throws Exception {
        try (MnnInterpreter model = new MnnInterpreter(model(), new MnnConfig().contextTokens(22))) {
            equal(ask(model, Message.user("12345")), "1");
            counts(21, 0, 1, Generation.Finish.LENGTH);
            String message = thrown(MnnException.class, () -> ask(model, Message.user("123456")));
            equal(message, "a chat of 22 tokens; expected less than 22. Begin a new chat.");
            equal(ask(model, Message.user("1")), "1");
        }
    }

    static void failures() throws Exception {
        try (MnnInterpreter model = new MnnInterpreter(model(), new MnnConfig())) {
            contains(thrown(MnnException.class, () -> ask(model, Message.user("fail!"))), "status 4", "logcat");
            equal(ask(model, Message.user("better")), "better");
            equal(last.reusedTokens, 0); // what the cache holds after a failure is unknown
            String message = thrown(UnsupportedOperationException.class, () ->
                    model.generate(List.of(Message.user("x")), 9, piece -> {
                        throw new UnsupportedOperationException("by the listener");
                    }));
            equal(message, "by the listener");
            equal(ask(model, Message.user("xyz")), "xyz");
            Thread[] other = {null};
            other[0] = new Thread(() -> {
                thrown(IllegalStateException.class, () -> ask(model, Message.user("x")));
                thrown(IllegalStateException.class, model::close);
                other[0] = null;
            });
            Thread thread = other[0];
            thread.start();
            thread.join();
            equal(other[0], null);
            model.close();
            equal(thrown(IllegalStateException.class, () -> ask(model, Message.user("x"))), "the model is closed");
        }
    }

    static void folders() throws Exception {
        File broken = new File(folder, "broken");
        write(new File(broken, "deepmnn.json"), "{\"files\": {\"config.json\": {\"crc32\": 1, \"nbytes\": 6}}}");
        contains(thrown(MnnException.class, () -> new MnnInterpreter(broken, new MnnConfig())),
                "config.json has 0 bytes; expected 6. ");
        write(new File(broken, "config.json"), "broken");
        contains(thrown(MnnException.class, () -> new MnnInterpreter(broken, new MnnConfig())),
                "MNN cannot open the model", "logcat");
        write(new File(broken, "deepmnn.json"), "{}");
        contains(thrown(MnnException.class, () -> new MnnInterpreter(broken, new MnnConfig())), "lists no files");
        File none = new File(folder, "none");
        contains(thrown(MnnException.class, () -> new MnnInterpreter(none, new MnnConfig())), "deepmnn.json");
        equal(ModelFolder.find("model", null, none, folder), model());
        equal(thrown(MnnException.class, () -> ModelFolder.find("x", null, none)),
                "no model x; expected it in null or " + none + ". Push the exported folder with adb.");
    }

    /** MNN's cache files do not name their model: each export gets a folder, and the one before it goes. */
    static void cache() throws Exception {
        File path = new File(folder, "cache");
        String[] found = new String[3];
        for (int i = 0; i < 3; i++) {
            if (i == 2) {
                File manifest = new File(model(), "deepmnn.json");
                write(manifest, "{\"files\": {\"config.json\": {\"nbytes\": 2, \"crc32\": 5}}, \"made\": \"anew\"}");
                write(new File(path, found[1] + "/0_0_0_0_0.static"), "weights");
                write(new File(path, "model-of-another/0_0_0_0_0.static"), "weights");
            }
            MnnConfig config = new MnnConfig().cachePath(path);
            try (MnnInterpreter model = new MnnInterpreter(model(), config)) {
                String settings = ask(model, Message.user("settings?"));
                found[i] = path.list((dir, name) -> name.matches("model-[0-9a-f]{8}"))[0];
                contains(settings, "\"use_mmap\":true", "\"tmp_path\":\"" + new File(path, found[i]) + "\"");
            }
        }
        equal(found[1], found[0]);
        equal(found[2].equals(found[0]), false);
        String[] left = path.list();
        Arrays.sort(left);
        equal(left, new String[] {found[2], "model-of-another"});
        contains(thrown(MnnException.class, () -> {
            new MnnInterpreter(model(), new MnnConfig().cachePath(new File(model(), "config.json"))).close();
        }), "cannot be made");
    }

    static void affinity() throws Exception {
        int core = Integer.getInteger("core"), absent = Integer.getInteger("absent");
        try (MnnInterpreter model = new MnnInterpreter(model(), new MnnConfig().cores(core))) {
            equal(ask(model, Message.user("cores?")), core + " "); // of a thread that MNN started
        }
        contains(thrown(MnnException.class, () -> new MnnInterpreter(model(), new MnnConfig().cores(absent))),
                "the cores cannot be used");
    }

    static void library() {
        contains(thrown(MnnException.class, () -> new MnnInterpreter(model(), new MnnConfig())), "libdeepmnn.so");
    }
}
