package cli

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A stoppedReader takes nothing until it is released.
type stoppedReader struct {
	released chan struct{}
	text     bytes.Buffer
}

func (s *stoppedReader) Write(p []byte) (int, error) {
	<-s.released
	return s.text.Write(p)
}

// TestOutputStopped holds that a reader that stops costs nobody time, that what waits
// for it is bounded, and that a line says how many were lost.
func TestOutputStopped(t *testing.T) {
	reader := &stoppedReader{released: make(chan struct{})}
	out := newOutput(reader)
	s := settings{logFormat: "logfmt", logLevel: "info"}
	log, err := s.logger(out)
	if err != nil {
		t.Fatal(err)
	}
	const lines = 20_000
	for i := range lines {
		log.Info("line", "number", i, "text", strings.Repeat("x", 100))
	}
	out.flush(10 * time.Millisecond) // it returns, though nothing is written
	if size := len(out.queue); size > maxQueued {
		t.Errorf("%d bytes are queued", size)
	}
	close(reader.released)
	log.Info("the last")
	out.flush(time.Minute)
	text := reader.text.String()
	written, dropped := strings.Count(text, "msg=line ")+strings.Count(text, `msg="the last"`), s.dropped.Load()
	if dropped == 0 || int64(written)+dropped != lines+1 {
		t.Errorf("%d lines written, %d dropped, of %d", written, dropped, lines)
	}
	var told int64
	for _, notice := range regexp.MustCompile(`msg="log lines dropped" lines=(\d+)`).FindAllStringSubmatch(text, -1) {
		n, _ := strconv.ParseInt(notice[1], 10, 64)
		told += n
	}
	if told != dropped {
		t.Errorf("notices tell of %d lines, and %d were dropped", told, dropped)
	}
}
