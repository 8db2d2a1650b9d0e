package hooks

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

// A cloudEvent is an event as hooks get it: CloudEvents 1.0, JSON format.
type cloudEvent struct {
	SpecVersion string       `json:"specversion"`
	ID          string       `json:"id"` // INSTANCE/SEQUENCE, or INSTANCE/COMMIT of what is asked
	Source      string       `json:"source"`
	Type        string       `json:"type"`
	Time        string       `json:"time"`
	Subject     string       `json:"subject,omitempty"` // id of the record
	ContentType string       `json:"datacontenttype"`
	Data        *apply.Event `json:"data"`
}

func idOf(e *apply.Event) string { return fmt.Sprintf("%s/%d", e.Instance, e.Sequence) }

func encode(id string, e *apply.Event) ([]byte, error) {
	return json.Marshal(cloudEvent{
		SpecVersion: "1.0", ID: id, Source: fmt.Sprintf("/dtesn-agent/%s/%s", e.Environment, e.Instance), Type: "dev.dtesn." + string(e.Type),
		Time: record.FromUnix(e.At).UTC().Format(time.RFC3339Nano), Subject: e.Record, ContentType: "application/json", Data: e,
	})
}

// A verdict says what becomes of an event after an attempt to deliver it.
type verdict int

const (
	verdictDelivered verdict = iota
	verdictRetry             // no response, or one that is about the moment
	verdictDrop              // the receiver does not want this one
	verdictDisable           // nor any other
	verdictVeto              // for who was asked; else it is as verdictDrop, or verdictRetry of a command
)

// maxAnswer bounds what is kept of an answer or an output, for the log.
const maxAnswer = 200

// deliver makes one attempt under an id. after is how long the receiver asks to wait.
func (h *Hook) deliver(ctx context.Context, client http.RoundTripper, id string, e *apply.Event) (v verdict, after time.Duration, err error) {
	body, err := h.body(id, e)
	if err != nil {
		return verdictDrop, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	if len(h.Command) > 0 {
		return h.run(ctx, body)
	}
	return h.post(ctx, client, id, body)
}

// post sends a webhook: Standard Webhooks 1.0.
func (h *Hook) post(ctx context.Context, client http.RoundTripper, id string, body []byte) (v verdict, after time.Duration, err error) {
	key, err := h.secret()
	if err != nil {
		return verdictRetry, 0, err
	}
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(body))
	if err != nil {
		return verdictDrop, 0, errors.New("the address cannot be used")
	}
	now := strconv.FormatInt(time.Now().Unix(), 10)
	q.Header.Set("Content-Type", h.contentType())
	q.Header.Set("User-Agent", "dtesn-agent")
	q.Header.Set("Webhook-Id", id)
	q.Header.Set("Webhook-Timestamp", now)
	if key != nil {
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.%s", id, now, body)
		q.Header.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	if u := q.URL.User; u != nil {
		password, _ := u.Password()
		q.SetBasicAuth(u.Username(), password)
	}
	resp, err := client.RoundTrip(q)
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("no response within %s", h.Timeout)
		}
		return verdictRetry, 0, err
	}
	// Closing ends a read: after a 101 the context does not, for the body is the connection.
	defer context.AfterFunc(ctx, func() { _ = resp.Body.Close() })()
	defer resp.Body.Close()
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return verdictDelivered, 0, nil
	}
	var text []byte
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	}
	err = fmt.Errorf("the receiver responds %d %s (%q)", resp.StatusCode, http.StatusText(resp.StatusCode), problem.Line(string(text), maxAnswer))
	switch code := resp.StatusCode; {
	case code == http.StatusGone:
		return verdictDisable, 0, err
	case code == http.StatusConflict, code == http.StatusUnprocessableEntity:
		return verdictVeto, 0, err
	case code >= 500, code == http.StatusRequestTimeout, code == http.StatusTooManyRequests, code < 200:
		return verdictRetry, retryAfter(resp.Header.Get("Retry-After")), err
	}
	return verdictDrop, 0, err
}

// retryAfter reads the header of that name: seconds, or a date. It is a day at most.
func retryAfter(value string) time.Duration {
	if at, err := http.ParseTime(value); err == nil {
		return min(max(time.Until(at), 0), 24*time.Hour)
	}
	seconds, _ := strconv.Atoi(value) // 0 if it is neither
	return time.Duration(min(max(seconds, 0), 24*3600)) * time.Second
}

// run runs a command, without a shell and in a process group of its own, which ends with it.
func (h *Hook) run(ctx context.Context, body []byte) (verdict, time.Duration, error) {
	cmd := exec.CommandContext(ctx, h.Command[0], h.Command[1:]...)
	cmd.Stdin = bytes.NewReader(body)
	out := &limited{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it left behind
	}
	if err == nil || errors.Is(err, exec.ErrWaitDelay) { // it is done; a child held its output
		return verdictDelivered, 0, nil
	}
	var exit *exec.ExitError
	v := verdictRetry
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		v = verdictVeto
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("not done within %s", h.Timeout)
	}
	if text := problem.Line(strings.TrimSpace(out.String()), maxAnswer); text != "" {
		err = fmt.Errorf("%w (%q)", err, text)
	}
	return v, 0, err
}

// limited keeps the beginning of what is written to it.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.Buffer.Write(p[:min(len(p), max(0, 4<<10-l.Len()))])
	return len(p), nil
}
