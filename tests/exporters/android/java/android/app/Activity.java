package android.app;

import android.content.res.Resources;
import android.os.Bundle;
import android.view.View;
import java.io.File;
import java.util.HashMap;
import java.util.Map;
import org.deepmnn.chat.R;

/** Enough of an Activity for one screen: its views are made as the layout says, its files lie where a test wants. */
public class Activity {
    public static File files;
    private final Map<Integer, View> views = new HashMap<>();

    protected void onCreate(Bundle state) {}

    protected void onDestroy() {}

    public void setContentView(int layout) {
        views.putAll(R.inflate(layout));
    }

    @SuppressWarnings("unchecked")
    public <T extends View> T findViewById(int id) {
        return (T) views.get(id);
    }

    public final String getString(int id, Object... arguments) {
        return String.format((String) R.VALUES.get(id), arguments);
    }

    public Resources getResources() {
        return new Resources();
    }

    public File getExternalFilesDir(String type) {
        return new File(files, type);
    }

    public File getNoBackupFilesDir() {
        return new File(files, "no_backup");
    }
}
