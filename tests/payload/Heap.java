import java.io.File;

/**
 * A service with a large heap that it hardly uses: many small linked objects that are old, and work
 * that touches only young ones. A full collection touches them all.
 */
public final class Heap {
    static final class Node {
        Node next;
        long first;
        long second;
        long third;
    }

    /** What is old: chains, which a collection has to follow object by object. */
    private static final Node[] OLD = new Node[1024];
    /** What is young. */
    private static final byte[][] YOUNG = new byte[256][];

    public static void main(String[] args) {
        long bytes = Long.parseLong(args[0]) << 20;
        long length = Long.parseLong(args[1]) * 1000;
        // A header of 12 bytes, a reference of 4.
        for (long n = 0; n < bytes / 40; n++) {
            Node node = new Node();
            node.next = OLD[(int) (n % OLD.length)];
            node.first = n;
            OLD[(int) (n % OLD.length)] = node;
        }
        System.gc();
        System.out.println("built");
        File go = new File(args[2]);
        while (!go.exists()) {
            work();
        }
        work(length);
        System.gc();
        work(length / 2);
        System.out.println("finished");
        // Its exit, which touches much, comes after what is recorded.
        work(length / 4);
    }

    /** Only ever in the same small steps: other code would be compiled, which touches much. */
    private static void work(long milliseconds) {
        long end = System.currentTimeMillis() + milliseconds;
        while (System.currentTimeMillis() < end) {
            work();
        }
    }

    private static void work() {
        long end = System.currentTimeMillis() + 500;
        for (int n = 0; System.currentTimeMillis() < end; n++) {
            YOUNG[n % YOUNG.length] = new byte[4096];
        }
    }
}
