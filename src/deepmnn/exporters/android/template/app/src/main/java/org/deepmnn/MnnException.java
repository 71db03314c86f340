// SPDX-License-Identifier: Apache-2.0
package org.deepmnn;

/** What went wrong in or around MNN: what was found, what was expected, what to do next. */
public final class MnnException extends Exception {
    private static final long serialVersionUID = 1L;

    /** The native side makes its message whole. */
    MnnException(String message) {
        super(message);
    }

    MnnException(String found, String expected, String hint) {
        super(found + "; expected " + expected + ". " + hint);
    }
}
