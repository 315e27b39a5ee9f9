// Takes seckill's events: java Receiver.java (PORT, and WEBHOOK_SECRETS separated by commas).
import static java.nio.charset.StandardCharsets.UTF_8;

import com.sun.net.httpserver.*;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.security.MessageDigest;
import java.util.*;
import java.util.concurrent.Executors;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

public class Receiver {
    static final String[] SECRETS = System.getenv("WEBHOOK_SECRETS").split(",");
    static final int TOLERANCE_S = 300, BODY_BYTES_MAX = 4_000_000;
    // In your mall: a table with a unique key, written in the transaction of the work itself.
    static final Set<String> seen = new HashSet<>();

    static boolean isGenuine(String header, byte[] body) throws Exception {
        String at = "", parts[] = (header == null ? "" : header).split(",");
        for (String part : parts) if (part.startsWith("t=")) at = part.substring(2);
        if (!at.matches("[0-9]{1,12}")) return false;
        long age = System.currentTimeMillis() / 1000 - Long.parseLong(at);
        boolean genuine = false; // While a secret is replaced, each side may know two.
        for (String secret : SECRETS) {
            Mac mac = Mac.getInstance("HmacSHA256");
            mac.init(new SecretKeySpec(secret.getBytes(UTF_8), "HmacSHA256"));
            mac.update((at + ".").getBytes(UTF_8));
            byte[] right = ("v1=" + HexFormat.of().formatHex(mac.doFinal(body))).getBytes(UTF_8);
            for (String part : parts) genuine |= MessageDigest.isEqual(right, part.getBytes(UTF_8));
        }
        return genuine && Math.abs(age) <= TOLERANCE_S;
    }

    static synchronized void take(String id) {
        if (!seen.contains(id)) System.out.println("handled " + id);
        seen.add(id);
    }

    static void serve(HttpExchange call) throws IOException {
        try (call) {
            byte[] body = call.getRequestBody().readNBytes(BODY_BYTES_MAX);
            boolean genuine = isGenuine(call.getRequestHeaders().getFirst("Seckill-Signature"), body);
            // The body begins {"id":"…"; your mall's JSON library reads the rest. Headers are unsigned.
            if (genuine) take(new String(body, UTF_8).split("\"", 5)[3]);
            call.sendResponseHeaders(genuine ? 204 : 401, -1);
        } catch (Exception error) {
            throw new IOException(error); // Closes the connection: the event comes again.
        }
    }

    public static void main(String[] args) throws IOException {
        var at = new InetSocketAddress("127.0.0.1", Integer.parseInt(System.getenv("PORT")));
        HttpServer server = HttpServer.create(at, 0);
        server.createContext("/", Receiver::serve);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.start();
    }
}
