// SPDX-License-Identifier: Apache-2.0
package org.deepmnn;

/** One message of a chat. The model's own chat template turns messages into a prompt. */
public final class Message {
    /** system, user or assistant. */
    public final String role;

    /** Plain text. */
    public final String content;

    private Message(String role, String content) {
        this.role = role;
        this.content = content;
    }

    public static Message system(String content) {
        return new Message("system", content);
    }

    public static Message user(String content) {
        return new Message("user", content);
    }

    public static Message assistant(String content) {
        return new Message("assistant", content);
    }
}
