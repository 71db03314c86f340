// SPDX-License-Identifier: Apache-2.0
package org.deepmnn.chat;

import android.app.Activity;
import android.os.Bundle;
import android.os.Handler;
import android.os.Looper;
import android.widget.Button;
import android.widget.EditText;
import android.widget.ScrollView;
import android.widget.TextView;
import java.io.File;
import java.util.Locale;
import org.deepmnn.DeepSeek;
import org.deepmnn.Generation;
import org.deepmnn.MnnConfig;
import org.deepmnn.MnnException;
import org.deepmnn.ModelFolder;

/** One screen: a question, its answer as it comes, and how fast it came. */
public final class ChatActivity extends Activity implements DeepSeek.Listener {
    private static final File PUSHED = new File("/data/local/tmp/mnn_models"); // MNN's own chat app looks there too

    private DeepSeek chat;
    private TextView status;
    private TextView transcript;
    private ScrollView scroll;

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        setContentView(R.layout.chat);
        status = findViewById(R.id.status);
        transcript = findViewById(R.id.transcript);
        scroll = findViewById(R.id.scroll);
        EditText input = findViewById(R.id.input);
        findViewById(R.id.send).setOnClickListener(view -> send(input));
        findViewById(R.id.stop).setOnClickListener(view -> chat.stop());
        findViewById(R.id.reset).setOnClickListener(view -> reset());
        String name = getString(R.string.model_folder);
        status.setText(getString(R.string.loading, name));
        try {
            open(ModelFolder.find(name, PUSHED, getExternalFilesDir("models")));
        } catch (MnnException error) {
            onError(error);
        }
    }

    private void open(File folder) {
        MnnConfig config = new MnnConfig()
                .threads(4)
                .power(MnnConfig.Level.HIGH)
                .precision(MnnConfig.Level.LOW)
                .memory(MnnConfig.Level.LOW) // NORMAL is slower, and exact
                .cachePath(getNoBackupFilesDir())
                .contextTokens(getResources().getInteger(R.integer.context_tokens));
        chat = new DeepSeek(folder, config, new Handler(Looper.getMainLooper())::post, this);
        enable(true);
    }

    private void enable(boolean enabled) {
        for (int id : new int[] {R.id.send, R.id.stop, R.id.reset}) {
            Button button = findViewById(id);
            button.setEnabled(enabled);
        }
    }

    private void send(EditText input) {
        String question = input.getText().toString().trim();
        if (!question.isEmpty()) {
            input.setText("");
            onText(getString(R.string.question, question));
            chat.send(question);
        }
    }

    private void reset() {
        chat.reset();
        transcript.setText("");
    }

    @Override
    protected void onDestroy() {
        if (chat != null) {
            chat.close();
        }
        super.onDestroy();
    }

    @Override
    public void onReady(double seconds) {
        status.setText(String.format(Locale.ROOT, "ready after %.1f s", seconds));
    }

    @Override
    public void onText(String piece) {
        transcript.append(piece);
        scroll.fullScroll(ScrollView.FOCUS_DOWN);
    }

    @Override
    public void onDone(Generation done) {
        status.setText(String.format(Locale.ROOT, "%d tokens, %.1f tokens/s; first after %.1f s",
                done.newTokens, done.tokensPerSecond(), done.prefillSeconds));
    }

    @Override
    public void onError(MnnException error) {
        status.setText(error.getMessage());
    }
}
