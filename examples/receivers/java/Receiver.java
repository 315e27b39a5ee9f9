// Takes seckill's events: java Receiver.java (PORT, and WEBHOOK_SECRETS separated by commas).
import static java.nio.charset.StandardCharsets.UTF_8;

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.security.MessageDigest;
import java.util.*;
import java.util.concurrent.*;
import java.util.regex.*;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

public class Receiver {
    static final String[] SECRETS = System.getenv("WEBHOOK_SECRETS").split(",");
    static final int TOLERANCE_S = 300, BODY_BYTES_MAX = 4_000_000;
    // The body begins with the event's id. A mall with a JSON library reads it with that.
    static final Pattern EVENT = Pattern.compile("\\{\"id\":\"([^\"]+)\"");
    // In your mall: a table with a unique key, written in the transaction of the work itself.
    static final Set<String> seen = new HashSet<>();

    static boolean isGenuine(String header, byte[] body) throws Exception {
        String at = "";
        List<String> marks = new ArrayList<>();
        for (String part : (header == null ? "" : header).split(",")) {
            if (part.startsWith("t=")) at = part.substring(2);
            if (part.startsWith("v1=") && marks.size() < 10) marks.add(part.substring(3));
        }
        long now = System.currentTimeMillis() / 1000;
        if (!at.matches("[0-9]{1,12}") || Math.abs(now - Long.parseLong(at)) > TOLERANCE_S) return false;
        boolean genuine = false; // While a secret is replaced, each side may know two.
        for (String secret : SECRETS) {
            Mac mac = Mac.getInstance("HmacSHA256");
            mac.init(new SecretKeySpec(secret.getBytes(UTF_8), "HmacSHA256"));
            mac.update((at + ".").getBytes(UTF_8));
            byte[] right = HexFormat.of().formatHex(mac.doFinal(body)).getBytes(UTF_8);
            for (String mark : marks) genuine |= MessageDigest.isEqual(right, mark.getBytes(UTF_8));
        }
        return genuine;
    }

    static synchronized void take(String id) {
        if (seen.contains(id)) return;
        System.out.println("handled " + id);
        seen.add(id);
    }

    static void serve(HttpExchange call) throws IOException {
        try (call) {
            byte[] body = call.getRequestBody().readNBytes(BODY_BYTES_MAX);
            boolean genuine = isGenuine(call.getRequestHeaders().getFirst("Seckill-Signature"), body);
            Matcher event = EVENT.matcher(new String(body, UTF_8)); // The headers are not signed.
            if (genuine && event.lookingAt()) take(event.group(1));
            call.sendResponseHeaders(genuine ? 204 : 401, -1);
        } catch (Exception error) {
            throw new IOException(error); // Closes the connection: the event comes again.
        }
    }

    public static void main(String[] args) throws IOException {
        int port = Integer.parseInt(System.getenv("PORT"));
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.createContext("/", Receiver::serve);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.start();
    }
}
