package android.view;

import android.os.Looper;

public class View {
    public interface OnClickListener {
        void onClick(View view);
    }

    public static final int FOCUS_DOWN = 130;
    private OnClickListener listener;
    private boolean enabled;

    public void setOnClickListener(OnClickListener listener) {
        Looper.check();
        this.listener = listener;
    }

    public void setEnabled(boolean enabled) {
        Looper.check();
        this.enabled = enabled;
    }

    public boolean performClick() {
        Looper.check();
        if (enabled) {
            listener.onClick(this);
        }
        return enabled;
    }
}
