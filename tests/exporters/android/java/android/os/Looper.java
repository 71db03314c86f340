package android.os;

import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/** The main thread of a pretended app. */
public final class Looper {
    private static final Looper MAIN = new Looper();
    private volatile Thread thread;
    public final ExecutorService queue =
            Executors.newSingleThreadExecutor(task -> thread = new Thread(task, "main looper"));

    public static Looper getMainLooper() {
        return MAIN;
    }

    /** What Android does when another thread touches a view. */
    public static void check() {
        if (Thread.currentThread() != MAIN.thread) {
            throw new IllegalStateException("a view was touched by " + Thread.currentThread().getName());
        }
    }
}
