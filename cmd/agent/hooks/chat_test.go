package hooks

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
)

// TestChats holds what a chat gets: one line of plain text, in which nothing is markup.
func TestChats(t *testing.T) {
	e := &apply.Event{
		Sequence: 1, Type: apply.EventRolledBack, Environment: "production", Instance: "web-1", Reason: "too slow <!channel>\n*now*", By: &record.Requester{UID: 7, User: "ada"},
	}
	text := `production on web-1: rolled back: too slow <!channel> *now* (ada`
	for format, want := range map[string]string{FormatSlack: strings.NewReplacer("<", "&lt;", ">", "&gt;").Replace(text), FormatTeams: text} {
		var got []byte
		server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
			if q.Header.Get("Content-Type") == "application/json" {
				got, _ = io.ReadAll(q.Body)
			}
		}))
		h := &Hook{Name: "a", URL: server.URL, Format: format, Timeout: time.Minute}
		if v, _, err := h.deliver(t.Context(), New(Options{}).client, "web-1/1", e); v != verdictDelivered {
			t.Errorf("%s: %v", format, err)
		}
		server.Close()
		var slack struct{ Text string }
		var teams struct {
			Type        string
			Attachments []struct {
				ContentType string
				Content     struct {
					Type string
					Body []struct {
						Type    string
						Inlines []struct{ Text string }
					}
				}
			}
		}
		if json.Unmarshal(got, &slack) != nil || json.Unmarshal(got, &teams) != nil {
			t.Fatalf("%s: %s", format, got)
		}
		said := slack.Text
		if format == FormatTeams {
			if len(teams.Attachments) != 1 || teams.Type != "message" || teams.Attachments[0].Content.Type != "AdaptiveCard" {
				t.Fatalf("%s", got)
			}
			said = teams.Attachments[0].Content.Body[0].Inlines[0].Text
		}
		if !strings.HasPrefix(said, want) {
			t.Errorf("%s: %s", format, got)
		}
	}
}
