package org.deepmnn;

import static org.deepmnn.Scenario.TEXT;
import static org.deepmnn.Scenario.equal;
import static org.deepmnn.Scenario.folder;
import static org.deepmnn.Scenario.thrown;
import static org.deepmnn.Scenario.write;

import java.io.File;
import java.nio.charset.StandardCharsets;
import java.util.Random;

/** What needs no native code. */
final class PureScenarios {
    /** Bytes in pieces of every size, whole and damaged, decode as Java decodes them at once. */
    static void utf8() {
        Random random = new Random(3);
        byte[] whole = TEXT.getBytes(StandardCharsets.UTF_8);
        for (int round = 0; round < 3000; round++) {
            byte[] bytes = whole.clone();
            for (int damage = round % 4; damage > 0; damage--) {
                bytes[random.nextInt(bytes.length)] = (byte) random.nextInt(256);
            }
            StringBuilder text = new StringBuilder();
            Utf8Stream stream = new Utf8Stream(8, piece -> {
                text.append(piece);
                return true;
            });
            int waiting = 0;
            for (int at = 0; at < bytes.length;) {
                int count = Math.min(bytes.length - at, random.nextInt(9 - waiting));
                for (int i = 0; i < count; i++) {
                    stream.bytes.put(waiting + i, bytes[at + i]);
                }
                at += count;
                waiting = stream.onToken(waiting + count);
                equal(waiting >= 0 && waiting < 4, true);
            }
            text.append(stream.finish());
            equal(text.toString(), new String(bytes, StandardCharsets.UTF_8));
        }
    }

    static void cores() throws Exception {
        int[] kilohertz = {1800000, 1800000, 2400000, 2400000, 3000000};
        for (int core = 0; core < kilohertz.length; core++) {
            write(new File(folder, "cpu" + core + "/cpufreq/cpuinfo_max_freq"), kilohertz[core] + "\n");
        }
        write(new File(folder, "cpu5/cpufreq/cpuinfo_max_freq"), "no number");
        equal(CpuCores.fastest(folder, 0), new int[] {});
        equal(CpuCores.fastest(folder, 1), new int[] {4});
        equal(CpuCores.fastest(folder, 3), new int[] {2, 3, 4});
        equal(CpuCores.fastest(folder, 9), new int[] {0, 1, 2, 3, 4});
        equal(CpuCores.fastest(new File(folder, "nothing"), 4), new int[] {});
    }

    /** Prints settings for a judge of JSON. */
    static void settings() {
        System.out.println(new MnnConfig().int8KvCache(true).int8KvCache(false).json(null));
        MnnConfig config = new MnnConfig()
                .threads(3)
                .precision(MnnConfig.Level.HIGH)
                .power(MnnConfig.Level.LOW)
                .memory(MnnConfig.Level.NORMAL);
        System.out.println(config.json(new File("/a \"b\"\\c\n世/d")));
        System.out.println(config.memory(MnnConfig.Level.LOW).int8KvCache(true).cores(1, 2).json(new File("/e")));
        equal(config.cores(), new int[] {1, 2});
        equal(config.power(MnnConfig.Level.HIGH).cores(), new int[] {});
        equal(thrown(IllegalArgumentException.class, () -> config.threads(0)), "0 threads; expected 1 or more");
        equal(thrown(IllegalArgumentException.class, () -> config.contextTokens(-1)),
                "-1 context tokens; expected 1 or more");
        equal(thrown(IllegalArgumentException.class, () -> config.cores(0, 64)), "core 64; expected 0 to 63");
    }
}
