package android.widget;

import android.os.Looper;
import android.view.View;

public class ScrollView extends View {
    public boolean fullScroll(int direction) {
        Looper.check();
        return direction == FOCUS_DOWN;
    }
}
