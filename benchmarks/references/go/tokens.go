package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"sync"
	"time"
)

const (
	rememberedMax = 50000
	charsMax      = 4096
	leewayS       = 10
	aheadMaxS     = 10 * 365 * 86400
)

// verified is a buyer, and the Unix time from which the token no longer says so.
type verified struct {
	buyer  string
	untilS float64
}

// tokens verifies user tokens: JWT, HS256. One that was verified is remembered, by the whole header,
// in two generations: so memory is bounded without a list of who came last.
type tokens struct {
	secret []byte
	mutex  sync.Mutex
	young  map[string]verified
	old    map[string]verified
}

func newTokens(secret string) *tokens {
	return &tokens{secret: []byte(secret), young: map[string]verified{}}
}

// buyerOf names the buyer, or returns the code of the refusal.
func (t *tokens) buyerOf(headers []string) (string, string) {
	if len(headers) == 0 {
		return "", "unauthenticated"
	}
	if len(headers) > 1 {
		return "", "invalid_input"
	}
	header := headers[0]
	t.mutex.Lock()
	found, known := t.young[header]
	if !known {
		if found, known = t.old[header]; known {
			t.remember(header, found)
		}
	}
	t.mutex.Unlock()
	nowS := float64(time.Now().UnixMilli()) / 1000
	if !known {
		var code string
		if found, code = t.verify(header, nowS); code != "" {
			return "", code
		}
		t.mutex.Lock()
		t.remember(header, found)
		t.mutex.Unlock()
	}
	if nowS >= found.untilS {
		return "", "token_expired"
	}
	return found.buyer, ""
}

func (t *tokens) remember(header string, found verified) {
	if len(t.young) >= rememberedMax {
		t.old, t.young = t.young, map[string]verified{}
	}
	t.young[header] = found
}

func (t *tokens) verify(header string, nowS float64) (verified, string) {
	const refused = "unauthenticated"
	scheme, token, _ := strings.Cut(header, " ")
	parts := strings.Split(token, ".")
	if len(header) > charsMax || !strings.EqualFold(scheme, "Bearer") || len(parts) != 3 {
		return verified{}, refused
	}
	var head struct {
		Alg  string          `json:"alg"`
		Crit json.RawMessage `json:"crit"`
	}
	if !decode(parts[0], &head) || head.Alg != "HS256" || head.Crit != nil {
		return verified{}, refused
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	mac := hmac.New(sha256.New, t.secret)
	mac.Write([]byte(token[:len(parts[0])+1+len(parts[1])]))
	if err != nil || !hmac.Equal(signature, mac.Sum(nil)) {
		return verified{}, refused
	}
	var claims struct {
		Sub json.RawMessage `json:"sub"`
		Exp *float64        `json:"exp"`
		Nbf *float64        `json:"nbf"`
		Aud json.RawMessage `json:"aud"`
	}
	if !decode(parts[1], &claims) || claims.Exp == nil || *claims.Exp > nowS+aheadMaxS {
		return verified{}, refused
	}
	if nowS >= *claims.Exp+leewayS {
		return verified{}, "token_expired"
	}
	if claims.Nbf != nil && nowS < *claims.Nbf-leewayS || claims.Aud != nil {
		return verified{}, refused
	}
	buyer, ok := textOf(claims.Sub)
	if !ok || !opaque(buyer) {
		return verified{}, refused
	}
	return verified{buyer, *claims.Exp + leewayS}, ""
}

// textOf reads a claim as text. Many malls number their members, and write the number.
func textOf(claim json.RawMessage) (string, bool) {
	var text string
	if json.Unmarshal(claim, &text) == nil {
		return text, true
	}
	var number int64
	if json.Unmarshal(claim, &number) == nil {
		return string(claim), true
	}
	return "", false
}

func decode(part string, into any) bool {
	raw, err := base64.RawURLEncoding.DecodeString(part)
	return err == nil && json.Unmarshal(raw, into) == nil
}

// opaque tells whether this can be an id: printable ASCII without space, comma and bar.
func opaque(text string) bool {
	if text == "" || len(text) > 64 {
		return false
	}
	for i := 0; i < len(text); i++ {
		if c := text[i]; c <= ' ' || c > '~' || c == ',' || c == '|' {
			return false
		}
	}
	return true
}
