// SPDX-License-Identifier: Apache-2.0
package org.deepmnn;

import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.charset.CharsetDecoder;
import java.nio.charset.CodingErrorAction;
import java.nio.charset.StandardCharsets;
import java.util.function.Predicate;

/**
 * Text as it comes: the native side writes a token's bytes into {@link #bytes}, whole characters come out. A token may
 * end inside a character; its bytes then wait at the front of the buffer for the next one's.
 */
final class Utf8Stream {
    /** Shared with the native side, which looks up its address once. */
    final ByteBuffer bytes;

    private final CharBuffer chars;
    private final Predicate<String> sink;
    private final CharsetDecoder decoder = StandardCharsets.UTF_8.newDecoder()
            .onMalformedInput(CodingErrorAction.REPLACE)
            .onUnmappableCharacter(CodingErrorAction.REPLACE);

    Utf8Stream(int capacity, Predicate<String> sink) {
        bytes = ByteBuffer.allocateDirect(capacity);
        chars = CharBuffer.allocate(capacity + 1);
        this.sink = sink;
    }

    /** The first {@code filled} bytes are there; returns how many of them wait for more, or -1 to end the answer. */
    int onToken(int filled) {
        return sink.test(take(filled, false)) ? bytes.position() : -1;
    }

    /** The last text: what still waits is no character, and becomes U+FFFD. */
    String finish() {
        return take(bytes.position(), true);
    }

    private String take(int filled, boolean last) {
        bytes.limit(filled).position(0);
        chars.clear();
        decoder.decode(bytes, chars, last);
        bytes.compact();
        return chars.flip().toString();
    }
}
