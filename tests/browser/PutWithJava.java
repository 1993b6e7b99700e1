import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Path;

/** Java's client as it comes: it offers HTTP/2 with its first request (Upgrade: h2c). Arguments: URL, file, times. */
class PutWithJava {
    public static void main(String[] arguments) throws Exception {
        for (int n = 0; n < Integer.parseInt(arguments[2]); n++) {
            var put = HttpRequest.newBuilder(URI.create(arguments[0] + n)).PUT(BodyPublishers.ofFile(Path.of(arguments[1])));
            var client = HttpClient.newHttpClient();
            System.out.print(client.send(put.build(), BodyHandlers.ofString()).statusCode() + " ");
            System.out.println(client.send(put.build(), BodyHandlers.ofString()).statusCode());
        }
    }
}
