package org.deepmnn;

import static org.deepmnn.Scenario.TEXT;
import static org.deepmnn.Scenario.contains;
import static org.deepmnn.Scenario.equal;
import static org.deepmnn.Scenario.folder;
import static org.deepmnn.Scenario.model;
import static org.deepmnn.Scenario.thrown;

import android.app.Activity;
import android.os.Looper;
import android.widget.Button;
import android.widget.TextView;
import java.io.File;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.TimeUnit;
import org.deepmnn.chat.ChatActivity;
import org.deepmnn.chat.R;

/** The chat on its own thread, and the screen. */
final class ChatScenarios {
    /** Writes down what it hears, and on which thread. */
    private static final class Heard implements DeepSeek.Listener, AutoCloseable {
        final BlockingQueue<String> events = new LinkedBlockingQueue<>();
        final ExecutorService callbacks = Executors.newSingleThreadExecutor(task -> new Thread(task, "callbacks"));

        private void note(String event) {
            equal(Thread.currentThread().getName(), "callbacks");
            events.add(event);
        }

        String next() throws InterruptedException {
            return events.poll(20, TimeUnit.SECONDS);
        }

        /** The whole answer, then its end. */
        String answer() throws InterruptedException {
            StringBuilder text = new StringBuilder();
            String event = next();
            for (; event != null && event.startsWith("text "); event = next()) {
                text.append(event.substring(5));
            }
            return text + "|" + event;
        }

        @Override
        public void onReady(double seconds) {
            note("ready");
        }

        @Override
        public void onText(String piece) {
            note("text " + piece);
        }

        @Override
        public void onDone(Generation generation) {
            note(generation.finish + " " + (generation.promptTokens == 0 ? "unread" : generation.newTokens));
        }

        @Override
        public void onError(MnnException error) {
            note("error " + error.getMessage());
        }

        @Override
        public void close() {
            callbacks.shutdown();
        }
    }

    static void order() throws Exception {
        try (Heard heard = new Heard();
                DeepSeek chat = new DeepSeek(model(), new MnnConfig(), heard.callbacks, heard)) {
            chat.send(TEXT);
            chat.send("first?");
            equal(heard.next(), "ready");
            int bytes = TEXT.getBytes("UTF-8").length;
            equal(heard.answer(), TEXT + "|END " + bytes);
            equal(heard.answer(), TEXT + "|END " + bytes);
            chat.send("kept");
            chat.send("said?");
            equal(heard.answer(), "kept|END 4");
            equal(heard.answer(), "kept|END 4");
            chat.maxNewTokens(3);
            chat.send("123456");
            equal(heard.answer(), "123|LENGTH 3");
        }
    }

    static void stop() throws Exception {
        try (Heard heard = new Heard();
                DeepSeek chat = new DeepSeek(model(), new MnnConfig(), heard.callbacks, heard)) {
            equal(heard.next(), "ready");
            chat.maxNewTokens(1_000_000);
            chat.send("count!");
            chat.send("waits");
            for (int i = 0; i < 25; i++) {
                equal(heard.next(), "text " + i % 10); // while send has returned
            }
            chat.stop();
            contains(heard.answer(), "|STOPPED ");
            equal(heard.answer(), "|STOPPED unread");
            chat.send("first?"); // the stopped answer is a part of the chat
            equal(heard.answer(), "count!|END 6");
            chat.reset();
            chat.send("first?");
            equal(heard.answer(), "first?|END 6");
            chat.stop(); // nothing runs: nothing happens
            chat.send("again");
            equal(heard.answer(), "again|END 5");
        }
    }

    static void errors() throws Exception {
        try (Heard heard = new Heard();
                DeepSeek chat = new DeepSeek(model(), new MnnConfig(), heard.callbacks, heard)) {
            equal(heard.next(), "ready");
            chat.send("kept");
            equal(heard.answer(), "kept|END 4");
            chat.send("fail!");
            contains(heard.answer(), "fa|error MNN stopped");
            chat.send("first?");
            equal(heard.answer(), "kept|END 4");
        }
        File none = new File(folder, "none");
        try (Heard heard = new Heard(); DeepSeek chat = new DeepSeek(none, new MnnConfig(), heard.callbacks, heard)) {
            chat.send("hello");
            contains(heard.next(), "error ", "deepmnn.json");
            contains(heard.next(), "error ", "deepmnn.json");
        }
    }

    /** The process ends by itself after this: no thread is left. */
    static void close() throws Exception {
        Heard heard = new Heard();
        DeepSeek chat = new DeepSeek(model(), new MnnConfig(), heard.callbacks, heard);
        equal(heard.next(), "ready");
        chat.maxNewTokens(1_000_000);
        chat.send("count!");
        equal(heard.next(), "text 0");
        chat.close();
        contains(heard.answer(), "|STOPPED");
        thrown(RejectedExecutionException.class, () -> chat.send("x"));
        heard.close();
    }

    private static <T> T onMain(Callable<T> task) throws Exception {
        return Looper.getMainLooper().queue.submit(task).get(20, TimeUnit.SECONDS);
    }

    private static String text(Activity screen, int id) throws Exception {
        return onMain(() -> ((TextView) screen.findViewById(id)).getText().toString());
    }

    private static void await(Activity screen, String status) throws Exception {
        for (int wait = 0; wait < 2000 && !text(screen, R.id.status).contains(status); wait++) {
            Thread.sleep(10);
        }
        contains(text(screen, R.id.status), status);
    }

    private static boolean click(Activity screen, int id) throws Exception {
        return onMain(() -> ((Button) screen.findViewById(id)).performClick());
    }

    private static void ask(Activity screen, String question) throws Exception {
        onMain(() -> {
            ((TextView) screen.findViewById(R.id.input)).setText(question);
            return null;
        });
        equal(click(screen, R.id.send), true);
    }

    /** The life of the screen: onCreate, a question, stop, a new chat, onDestroy. */
    private static final class Screen extends Activity {
        static ChatActivity open() throws Exception {
            return onMain(() -> {
                ChatActivity screen = new ChatActivity();
                start(screen);
                return screen;
            });
        }

        private static void start(ChatActivity screen) throws Exception {
            life(screen, "onCreate", new Class<?>[] {android.os.Bundle.class}, new Object[] {null});
        }

        static void close(ChatActivity screen) throws Exception {
            onMain(() -> {
                life(screen, "onDestroy", new Class<?>[] {}, new Object[] {});
                return null;
            });
        }

        private static void life(ChatActivity screen, String name, Class<?>[] types, Object[] values) throws Exception {
            var method = ChatActivity.class.getDeclaredMethod(name, types);
            method.setAccessible(true);
            method.invoke(screen, values);
        }
    }

    static void screen() throws Exception {
        Activity.files = folder;
        ChatActivity screen = Screen.open();
        await(screen, "ready after");
        ask(screen, "  " + TEXT + " ");
        await(screen, "tokens/s");
        equal(text(screen, R.id.transcript), "\n\n> " + TEXT + "\n\n" + TEXT);
        equal(text(screen, R.id.input), "");
        ask(screen, " ");
        equal(text(screen, R.id.transcript), "\n\n> " + TEXT + "\n\n" + TEXT); // nothing was asked
        ask(screen, "count!");
        equal(click(screen, R.id.stop), true);
        equal(click(screen, R.id.reset), true);
        ask(screen, TEXT);
        await(screen, TEXT.getBytes("UTF-8").length + " tokens, ");
        equal(text(screen, R.id.transcript), "\n\n> " + TEXT + "\n\n" + TEXT); // and nothing of the one before
        Screen.close(screen);
        Looper.getMainLooper().queue.shutdown();
    }

    /** Without a model there is a screen that says so, and cannot be used. */
    static void emptyScreen() throws Exception {
        Activity.files = new File(folder, "nothing");
        ChatActivity screen = Screen.open();
        await(screen, "no model");
        equal(click(screen, R.id.send), false);
        Screen.close(screen);
        Looper.getMainLooper().queue.shutdown();
    }
}
