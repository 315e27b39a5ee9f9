package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync"
)

// redis is one connection that many callers share. A call is added to what is to be written next; one
// goroutine writes all of it at once, one reads the answers, which come in the order of the calls.
type redis struct {
	net     net.Conn
	mutex   sync.Mutex
	pending []byte
	spare   []byte
	asked   []*call
	wake    chan struct{}
}

// call waits for its answer.
type call struct {
	answer reply
	done   chan struct{}
}

// reply is an integer, a text, a list of them, or an error.
type reply struct {
	number int64
	text   string
	items  []reply
	err    error
}

var calls = sync.Pool{New: func() any { return &call{done: make(chan struct{}, 1)} }}

func (r reply) status() int64 {
	if len(r.items) == 0 {
		return r.number
	}
	return r.items[0].number
}

func connect(address string) (*redis, error) {
	network, at := "unix", strings.TrimPrefix(address, "unix://")
	if at == address {
		parsed, err := url.Parse(address)
		if err != nil {
			return nil, err
		}
		network, at = "tcp", parsed.Host
	}
	connection, err := net.Dial(network, at)
	if err != nil {
		return nil, err
	}
	r := &redis{net: connection, wake: make(chan struct{}, 1)}
	go r.write()
	go r.read()
	return r, nil
}

// call sends one command and waits for its answer.
func (r *redis) call(parts ...string) reply {
	waiting := calls.Get().(*call)
	r.mutex.Lock()
	r.pending = appendCommand(r.pending, parts)
	r.asked = append(r.asked, waiting)
	r.mutex.Unlock()
	select {
	case r.wake <- struct{}{}:
	default: // The writer has been woken already.
	}
	<-waiting.done
	answer := waiting.answer
	waiting.answer = reply{}
	calls.Put(waiting)
	return answer
}

func (r *redis) write() {
	for range r.wake {
		// Let those who are ready to call do so first: one write serves them all.
		runtime.Gosched()
		r.mutex.Lock()
		out := r.pending
		r.pending, r.spare = r.spare[:0], out
		r.mutex.Unlock()
		if _, err := r.net.Write(out); err != nil {
			log.Fatal("Redis: ", err)
		}
	}
}

// read hands out the answers. Without its connection this process has nothing to do, so it ends, and
// whoever watches over it starts it again.
func (r *redis) read() {
	in := bufio.NewReaderSize(r.net, 1<<16)
	var asked []*call
	next := 0
	for {
		answer, err := readReply(in)
		if err != nil {
			log.Fatal("Redis: ", err)
		}
		if next == len(asked) {
			r.mutex.Lock()
			asked, r.asked = r.asked, asked[:0]
			r.mutex.Unlock()
			next = 0
		}
		asked[next].answer = answer
		asked[next].done <- struct{}{}
		next++
	}
}

func appendCommand(out []byte, parts []string) []byte {
	out = append(out, '*')
	out = strconv.AppendInt(out, int64(len(parts)), 10)
	for _, part := range parts {
		out = append(out, "\r\n$"...)
		out = strconv.AppendInt(out, int64(len(part)), 10)
		out = append(out, "\r\n"...)
		out = append(out, part...)
	}
	return append(out, "\r\n"...)
}

func readReply(in *bufio.Reader) (reply, error) {
	head, err := in.ReadSlice('\n')
	if err != nil {
		return reply{}, err
	}
	if len(head) < 3 {
		return reply{}, fmt.Errorf("what is %q?", head)
	}
	kind, rest := head[0], head[1:len(head)-2]
	switch kind {
	case '+':
		return reply{text: string(rest)}, nil
	case '-':
		return reply{err: errors.New(string(rest))}, nil
	}
	number, err := strconv.ParseInt(string(rest), 10, 64)
	if err != nil {
		return reply{}, err
	}
	switch {
	case kind == ':':
		return reply{number: number}, nil
	case kind == '$' && number < 0 || kind == '*' && number < 0:
		return reply{}, nil
	case kind == '$':
		text := make([]byte, number+2)
		if _, err := io.ReadFull(in, text); err != nil {
			return reply{}, err
		}
		return reply{text: string(text[:number])}, nil
	case kind == '*':
		items := make([]reply, number)
		for i := range items {
			if items[i], err = readReply(in); err != nil {
				return reply{}, err
			}
		}
		return reply{items: items}, nil
	}
	return reply{}, fmt.Errorf("what is %q?", kind)
}
