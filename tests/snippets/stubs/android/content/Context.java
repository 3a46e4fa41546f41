package android.content;

import android.content.res.AssetManager;
import java.io.File;

public class Context {
    public AssetManager getAssets() { return null; }
    public File getCacheDir() { return null; }
    public File getNoBackupFilesDir() { return null; }
}
