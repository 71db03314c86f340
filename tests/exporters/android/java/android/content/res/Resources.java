package android.content.res;

import org.deepmnn.chat.R;

public final class Resources {
    public int getInteger(int id) {
        return (Integer) R.VALUES.get(id);
    }
}
