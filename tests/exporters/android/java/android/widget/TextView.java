package android.widget;

import android.os.Looper;
import android.view.View;

public class TextView extends View {
    private final StringBuilder text = new StringBuilder();

    public final void setText(CharSequence value) {
        Looper.check();
        text.replace(0, text.length(), value.toString());
    }

    public final void append(CharSequence value) {
        Looper.check();
        text.append(value);
    }

    public CharSequence getText() {
        Looper.check();
        return text.toString();
    }
}
