// SPDX-License-Identifier: Apache-2.0
package org.deepmnn;

import java.io.File;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Executor;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * A chat with a model, on a thread of its own: calls return at once, the {@link Listener} hears of the rest.
 *
 * <pre>
 * DeepSeek chat = new DeepSeek(folder, new MnnConfig().threads(4), new Handler(Looper.getMainLooper())::post, this);
 * chat.send("Why is the sky blue?");
 * </pre>
 */
public final class DeepSeek implements AutoCloseable {
    /** Called by the executor that was given, in order. */
    public interface Listener {
        /** The model is open, after so many seconds. */
        void onReady(double seconds);

        /** More of the answer: whole characters. */
        void onText(String piece);

        /** The answer is complete, or was stopped; without any text, its question is forgotten. */
        void onDone(Generation generation);

        /** The model could not be opened, or a message not be answered; that message is forgotten. */
        void onError(MnnException error);
    }

    private final ExecutorService worker = Executors.newSingleThreadExecutor(task -> new Thread(task, "deepmnn"));
    private final Executor callbacks;
    private final Listener listener;
    private final AtomicInteger sent = new AtomicInteger();
    private volatile int stopped; // messages up to this one
    private volatile int maxNewTokens = 1024;
    // The worker's own:
    private final List<Message> history = new ArrayList<>();
    private MnnInterpreter model;
    private MnnException failure;

    /** Starts to open the model in {@code folder}. */
    public DeepSeek(File folder, MnnConfig config, Executor callbacks, Listener listener) {
        this.callbacks = callbacks;
        this.listener = listener;
        MnnConfig settings = new MnnConfig(config);
        worker.execute(() -> open(folder, settings));
    }

    /** Tokens that an answer may have. */
    public void maxNewTokens(int count) {
        maxNewTokens = count;
    }

    /** Asks; the answer comes to the listener, after those to earlier messages. */
    public void send(String text) {
        int number = sent.incrementAndGet();
        worker.execute(() -> answer(number, text));
    }

    /** Ends the answers to all that was sent, at the next token; a prompt that is being read is read to its end. */
    public void stop() {
        stopped = sent.get();
    }

    /** Stops, and begins a new chat. */
    public void reset() {
        stop();
        worker.execute(history::clear);
    }

    /** Stops, and gives the model back. Nothing can be sent any more. */
    @Override
    public void close() {
        stop();
        worker.execute(() -> {
            if (model != null) {
                model.close();
            }
        });
        worker.shutdown();
    }

    private void open(File folder, MnnConfig config) {
        long start = System.nanoTime();
        try {
            model = new MnnInterpreter(folder, config);
            double seconds = (System.nanoTime() - start) / 1e9;
            callbacks.execute(() -> listener.onReady(seconds));
        } catch (MnnException error) {
            failure = error;
            callbacks.execute(() -> listener.onError(error));
        }
    }

    private void answer(int number, String text) {
        if (number <= stopped) {
            callbacks.execute(() -> listener.onDone(Generation.NONE));
            return;
        }
        int before = history.size();
        history.add(Message.user(text));
        StringBuilder whole = new StringBuilder();
        try {
            if (failure != null) {
                throw failure;
            }
            Generation generation = model.generate(history, maxNewTokens, piece -> {
                if (!piece.isEmpty()) {
                    whole.append(piece);
                    callbacks.execute(() -> deliver(number, piece));
                }
                return number > stopped;
            });
            callbacks.execute(() -> listener.onDone(generation));
        } catch (MnnException error) {
            whole.setLength(0);
            callbacks.execute(() -> listener.onError(error));
        }
        if (whole.length() > 0) {
            history.add(Message.assistant(whole.toString()));
        } else {
            history.subList(before, history.size()).clear();
        }
    }

    private void deliver(int number, String piece) {
        if (number > stopped) { // who stopped an answer wants no more of it
            listener.onText(piece);
        }
    }
}
