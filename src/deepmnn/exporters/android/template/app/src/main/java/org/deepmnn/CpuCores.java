// SPDX-License-Identifier: Apache-2.0
package org.deepmnn;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.Comparator;
import java.util.stream.IntStream;

/** The phone's cores, by speed. */
public final class CpuCores {
    private CpuCores() {}

    /** The numbers of the {@code count} cores with the highest clock; fewer, or none, if they cannot be told. */
    public static int[] fastest(int count) {
        return fastest(new File("/sys/devices/system/cpu"), count);
    }

    static int[] fastest(File cpus, int count) {
        return IntStream.range(0, 64)
                .filter(core -> maxKilohertz(cpus, core) > 0)
                .boxed()
                .sorted(Comparator.comparing(core -> -maxKilohertz(cpus, core)))
                .limit(count)
                .mapToInt(Integer::intValue)
                .sorted()
                .toArray();
    }

    private static long maxKilohertz(File cpus, int core) {
        File file = new File(cpus, "cpu" + core + "/cpufreq/cpuinfo_max_freq");
        try {
            return Long.parseLong(new String(Files.readAllBytes(file.toPath()), StandardCharsets.US_ASCII).trim());
        } catch (IOException | NumberFormatException unknown) {
            return 0;
        }
    }
}
