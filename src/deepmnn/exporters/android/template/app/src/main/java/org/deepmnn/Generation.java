// SPDX-License-Identifier: Apache-2.0
package org.deepmnn;

/** What one answer took. */
public final class Generation {
    /** Why an answer ended: the model was done, it reached its limit of tokens, or it was stopped. */
    public enum Finish { END, LENGTH, STOPPED }

    /** Stopped before it began. */
    static final Generation NONE = new Generation(new long[] {0, 0, 0, Finish.STOPPED.ordinal()}, 0, 0);

    /** Tokens of the whole chat, as the model read it. */
    public final int promptTokens;

    /** How many of them were still in the KV cache from the turn before. */
    public final int reusedTokens;

    /** Tokens of the answer. */
    public final int newTokens;

    public final Finish finish;

    /** Time to read the prompt, up to the first token. */
    public final double prefillSeconds;

    /** Time from there to the end of the answer. */
    public final double decodeSeconds;

    Generation(long[] counts, double prefillSeconds, double decodeSeconds) {
        promptTokens = (int) counts[0];
        reusedTokens = (int) counts[1];
        newTokens = (int) counts[2];
        finish = Finish.values()[(int) counts[3]];
        this.prefillSeconds = prefillSeconds;
        this.decodeSeconds = decodeSeconds;
    }

    /** Tokens of the answer per second, without the prefill; 0 when there was none. */
    public double tokensPerSecond() {
        return newTokens == 0 ? 0 : newTokens / decodeSeconds;
    }
}
