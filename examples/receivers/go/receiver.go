// Takes seckill's events: go run receiver.go (PORT, and WEBHOOK_SECRETS separated by commas).
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const tolerance, bodyBytesMax = 300 * time.Second, 4_000_000

var secrets = strings.Split(os.Getenv("WEBHOOK_SECRETS"), ",")

// In your mall: a table with a unique key, written in the same transaction as the work itself.
var seen, lock = map[string]bool{}, sync.Mutex{}

func isGenuine(header string, body []byte) (genuine bool) {
	at, marks := "", []string{}
	for _, part := range strings.Split(header, ",") {
		if name, value, _ := strings.Cut(part, "="); name == "t" {
			at = value
		} else if name == "v1" && len(marks) < 10 {
			marks = append(marks, value)
		}
	}
	seconds, err := strconv.ParseInt(at, 10, 40)
	age := time.Since(time.Unix(seconds, 0))
	if err != nil || age > tolerance || age < -tolerance {
		return false
	}
	for _, secret := range secrets { // While a secret is replaced, each side may know two.
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write(append([]byte(at+"."), body...))
		right := []byte(hex.EncodeToString(mac.Sum(nil)))
		for _, mark := range marks {
			genuine = hmac.Equal(right, []byte(mark)) || genuine
		}
	}
	return genuine
}

func receive(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyBytesMax))
	var event struct{ ID, Kind string } // The id is the body's: the headers are not signed.
	if err != nil || !isGenuine(r.Header.Get("Seckill-Signature"), body) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	} else if err := json.Unmarshal(body, &event); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	lock.Lock()
	defer lock.Unlock()
	if !seen[event.ID] {
		fmt.Println("handled", event.ID, event.Kind)
		seen[event.ID] = true
	}
	w.WriteHeader(http.StatusNoContent)
}

func main() {
	server := http.Server{Addr: "127.0.0.1:" + os.Getenv("PORT"), ReadTimeout: 10 * time.Second}
	server.Handler = http.HandlerFunc(receive)
	panic(server.ListenAndServe())
}
