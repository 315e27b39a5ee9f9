// Takes seckill's events: go run receiver.go (PORT, and WEBHOOK_SECRETS separated by commas).
package main

import (
	"crypto/hmac"
	"crypto/sha256"
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

const toleranceS, bodyBytesMax = 300, 4_000_000

var secrets = strings.Split(os.Getenv("WEBHOOK_SECRETS"), ",")

// In your mall: a table with a unique key, written in the same transaction as the work itself.
var seen, lock = map[string]bool{}, sync.Mutex{}

func isGenuine(header string, body []byte) (genuine bool) {
	parts := strings.Split(header, ",")
	at := strings.TrimPrefix(parts[0], "t=")
	seconds, err := strconv.ParseInt(at, 10, 40)
	age := time.Now().Unix() - seconds
	for _, secret := range secrets { // While a secret is replaced, each side may know two.
		mac := hmac.New(sha256.New, []byte(secret))
		fmt.Fprintf(mac, "%s.%s", at, body)
		right := []byte(fmt.Sprintf("v1=%x", mac.Sum(nil)))
		for _, part := range parts {
			genuine = hmac.Equal(right, []byte(part)) || genuine
		}
	}
	return genuine && err == nil && -toleranceS <= age && age <= toleranceS
}

func receive(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyBytesMax))
	var event struct{ ID, Kind string } // The id is the body's: the headers are not signed.
	status := http.StatusUnauthorized
	if err == nil && isGenuine(r.Header.Get("Seckill-Signature"), body) && json.Unmarshal(body, &event) == nil {
		lock.Lock()
		defer lock.Unlock()
		if !seen[event.ID] {
			fmt.Println("handled", event.ID, event.Kind)
			seen[event.ID] = true
		}
		status = http.StatusNoContent
	}
	w.WriteHeader(status)
}

func main() {
	panic(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), http.HandlerFunc(receive)))
}
