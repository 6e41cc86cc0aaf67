import java.io.BufferedInputStream;
import java.io.FileInputStream;
import java.io.InputStream;
import java.util.Enumeration;
import java.util.zip.CRC32;
import java.util.zip.ZipEntry;
import java.util.zip.ZipFile;
import java.util.zip.ZipInputStream;

/** Reads every member of ZIPs twice: by the central directory, and as a stream. */
public class Read {
    public static void main(String[] paths) throws Exception {
        for (String path : paths) {
            int listed = 0;
            try (ZipFile zip = new ZipFile(path)) {
                Enumeration<? extends ZipEntry> entries = zip.entries();
                while (entries.hasMoreElements()) {
                    ZipEntry entry = entries.nextElement();
                    try (InputStream content = zip.getInputStream(entry)) {
                        check(content, entry);
                    }
                    listed++;
                }
            }
            int streamed = 0;
            try (ZipInputStream zip = new ZipInputStream(new BufferedInputStream(new FileInputStream(path)))) {
                ZipEntry entry;
                while ((entry = zip.getNextEntry()) != null) {
                    zip.readAllBytes();
                    zip.closeEntry(); // compares checksum and sizes
                    streamed++;
                }
            }
            if (listed != streamed) {
                throw new IllegalStateException(path + ": " + listed + " listed, " + streamed + " streamed");
            }
        }
    }

    private static void check(InputStream content, ZipEntry entry) throws Exception {
        CRC32 crc = new CRC32();
        byte[] data = content.readAllBytes();
        crc.update(data);
        if (data.length != entry.getSize() || crc.getValue() != entry.getCrc()) {
            throw new IllegalStateException(entry.getName() + ": wrong size or checksum");
        }
    }
}
