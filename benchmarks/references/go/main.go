// Go's net/http and a pipelined connection to Redis: one EVALSHA of reserve_one.lua an order.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"mime"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	created   = 1
	exists    = 2
	timeoutMS = 3000
	// What reserve_one.lua finds nothing for.
	unknownSKU = 99999
	before     = "/v1/sales/"
	after      = "/orders"
)

// start is what this process is told; see start.py.
type start struct {
	URL          string            `json:"url"`
	UserSecret   string            `json:"user_secret"`
	Script       string            `json:"script"`
	SKUs         []string          `json:"skus"`
	PriceFen     int               `json:"price_fen"`
	BodyBytesMax int64             `json:"body_bytes_max"`
	Statuses     map[string]string `json:"statuses"`
	Problems     map[string]struct {
		HTTP  int    `json:"http"`
		Title string `json:"title"`
	} `json:"problems"`
}

type line struct {
	SKU      string `json:"sku"`
	Quantity int    `json:"quantity"`
}

type wish struct {
	Items []line `json:"items"`
	Attrs string `json:"attrs"`
	Token string `json:"token"`
}

type order struct {
	ID         string   `json:"id"`
	Sale       string   `json:"sale"`
	Buyer      string   `json:"buyer"`
	State      string   `json:"state"`
	Version    int      `json:"version"`
	Items      []line   `json:"items"`
	AmountFen  int      `json:"amount_fen"`
	DeadlineMS int64    `json:"deadline_ms"`
	Payments   []string `json:"payments"`
	Refund     *string  `json:"refund"`
}

type outcome struct {
	Code  string `json:"code"`
	Order order  `json:"order"`
}

// problem is a refusal, encoded beforehand.
type problem struct {
	http int
	body []byte
}

type server struct {
	redis        *redis
	sha          string
	tokens       *tokens
	skus         map[string]int
	priceFen     int
	bodyBytesMax int64
	problems     map[string]problem
	// By the script's status.
	codes map[int64]string
}

var (
	jsonType    = []string{"application/json"}
	problemType = []string{"application/problem+json"}
	noStore     = []string{"no-store"}
	none        = []string{}
)

func main() {
	var given start
	if err := json.Unmarshal([]byte(os.Args[1]), &given); err != nil {
		log.Fatal(err)
	}
	// The heap is small, so by default garbage would be collected all the time.
	debug.SetGCPercent(400)
	s, err := newServer(given)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	served := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	ended, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		<-ended.Done()
		soon, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		served.Shutdown(soon)
	}()
	fmt.Printf("http://%s\n", listener.Addr())
	if err := served.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
}

func newServer(given start) (*server, error) {
	s := &server{
		tokens:       newTokens(given.UserSecret),
		skus:         map[string]int{},
		priceFen:     given.PriceFen,
		bodyBytesMax: given.BodyBytesMax,
		problems:     map[string]problem{},
		codes:        map[int64]string{},
	}
	for index, sku := range given.SKUs {
		s.skus[sku] = index
	}
	for number, code := range given.Statuses {
		status, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return nil, err
		}
		s.codes[status] = code
	}
	for code, kind := range given.Problems {
		body, err := json.Marshal(struct {
			Type   string `json:"type"`
			Title  string `json:"title"`
			Status int    `json:"status"`
			Code   string `json:"code"`
		}{"urn:seckill:problem:" + code, kind.Title, kind.HTTP, code})
		if err != nil {
			return nil, err
		}
		s.problems[code] = problem{kind.HTTP, body}
	}
	var err error
	if s.redis, err = connect(given.URL); err != nil {
		return nil, err
	}
	loaded := s.redis.call("SCRIPT", "LOAD", given.Script)
	s.sha = loaded.text
	return s, loaded.err
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	code, path := "not_found", r.URL.Path
	if strings.HasPrefix(path, before) && strings.HasSuffix(path, after) && r.Method == http.MethodPost {
		sale := strings.TrimSuffix(path[len(before):], after)
		if sale != "" && !strings.Contains(sale, "/") {
			code = s.reserve(w, r, sale)
		}
	}
	if code != "" {
		s.refuse(w, code)
	}
}

// reserve holds units for a buyer, or returns the code of the refusal.
func (s *server) reserve(w http.ResponseWriter, r *http.Request, sale string) string {
	buyer, code := s.tokens.buyerOf(r.Header["Authorization"])
	if code != "" {
		return code
	}
	keys := r.Header["Idempotency-Key"]
	if len(keys) == 0 {
		return "idempotency_key_required"
	}
	if len(keys) > 1 || !opaque(keys[0]) {
		return "invalid_input"
	}
	asked, code := s.wishOf(w, r)
	if code != "" {
		return code
	}
	item := asked.Items[0]
	sku, known := s.skus[item.SKU]
	if !known {
		sku = unknownSKU
	}
	digest := sha256.Sum256([]byte(sale + "\x00" + buyer + "\x00" + keys[0]))
	id := hex.EncodeToString(digest[:12])
	shard := "sk:{" + sale + ":0}:"
	answer := s.redis.call("EVALSHA", s.sha, "6",
		shard+"sale-one", shard+"stock-one", shard+"buyers-one",
		shard+"orders-one", shard+"holds-one", shard+"events-one",
		id, buyer, strconv.Itoa(sku), strconv.Itoa(item.Quantity),
		strconv.FormatInt(time.Now().UnixMilli()+timeoutMS, 10), printOf(asked.Attrs), asked.Attrs)
	if answer.err != nil {
		log.Print(answer.err)
		return "unavailable"
	}
	return s.tell(w, answer, order{
		ID: id, Sale: sale, Buyer: buyer, State: "held", Version: 1, Items: asked.Items,
		AmountFen: item.Quantity * s.priceFen, Payments: none,
	})
}

// tell answers with an order that holds, or returns the code of the refusal.
func (s *server) tell(w http.ResponseWriter, answer reply, held order) string {
	status, code := http.StatusCreated, s.codes[answer.status()]
	switch answer.status() {
	case created:
		held.DeadlineMS = answer.items[1].number
	case exists:
		// A record begins with "h1" and the deadline, then comes a bar.
		text, _, _ := strings.Cut(answer.items[1].text[2:], "|")
		held.DeadlineMS, _ = strconv.ParseInt(text, 10, 64)
		status = http.StatusOK
	default:
		return code
	}
	body, err := json.Marshal(outcome{code, held})
	if err != nil {
		log.Print(err)
		return "unavailable"
	}
	send(w, status, jsonType, body)
	return ""
}

// wishOf reads the body, or returns the code of the refusal.
func (s *server) wishOf(w http.ResponseWriter, r *http.Request) (wish, string) {
	var asked wish
	if contentType := r.Header.Get("Content-Type"); contentType != "application/json" {
		media, _, err := mime.ParseMediaType(contentType)
		if err != nil || media != "application/json" {
			return asked, "unsupported_media_type"
		}
	}
	if r.Header.Get("Content-Encoding") != "" {
		return asked, "unsupported_media_type"
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.bodyBytesMax))
	if err != nil {
		return asked, "body_too_large"
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&asked); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return asked, "malformed_json"
		}
		return asked, "invalid_input"
	}
	if _, err := decoder.Token(); err != io.EOF {
		return asked, "malformed_json"
	}
	if len(asked.Items) != 1 || len(asked.Attrs) > 512 || len(asked.Token) > 200 {
		return asked, "invalid_input"
	}
	item := asked.Items[0]
	if item.SKU == "" || len(item.SKU) > 40 || item.Quantity < 1 || item.Quantity > 10000 {
		return asked, "invalid_input"
	}
	return asked, ""
}

func (s *server) refuse(w http.ResponseWriter, code string) {
	refusal := s.problems[code]
	send(w, refusal.http, problemType, refusal.body)
}

func send(w http.ResponseWriter, status int, contentType []string, body []byte) {
	header := w.Header()
	header["Content-Type"] = contentType
	header["Cache-Control"] = noStore
	w.WriteHeader(status)
	w.Write(body)
}

// printOf stands for attrs when a retry is compared with its original.
func printOf(attrs string) string {
	if attrs == "" {
		return "------"
	}
	digest := sha256.Sum256([]byte(attrs))
	return hex.EncodeToString(digest[:3])
}
