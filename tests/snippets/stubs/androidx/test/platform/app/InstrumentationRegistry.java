package androidx.test.platform.app;

import android.app.Instrumentation;

public class InstrumentationRegistry {
    public static Instrumentation getInstrumentation() { return null; }
}
