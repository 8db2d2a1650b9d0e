package hooks

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"dtesn-agent/apply"
	"dtesn-agent/schema/problem"
)

// The formats of chats, which a URL can take in place of a CloudEvent.
const (
	FormatSlack = "slack"
	FormatTeams = "teams"
)

// checkFormat says what is wrong with the format of a hook.
func (h *Hook) checkFormat() error {
	switch {
	case h.Format == "":
		return nil
	case h.Format != FormatSlack && h.Format != FormatTeams:
		return problem.New("", fmt.Errorf("unknown format %q", h.Format), "slack or teams; without one it is a CloudEvent")
	case h.URL == "":
		return errors.New("format is for a url")
	case h.Required:
		return problem.New("", errors.New("a chat cannot agree to a change"), "leave required out, or format")
	}
	return nil
}

func (h *Hook) contentType() string {
	if h.Format == "" {
		return "application/cloudevents+json"
	}
	return "application/json"
}

// body returns what the hook is told.
func (h *Hook) body(id string, e *apply.Event) ([]byte, error) {
	switch h.Format {
	case FormatSlack: // https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks
		return json.Marshal(map[string]any{"text": strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(chatText(e)), "mrkdwn": false})
	case FormatTeams: // https://learn.microsoft.com/microsoftteams/platform/webhooks-and-connectors/how-to/connectors-using
		text := map[string]any{"type": "TextRun", "text": chatText(e)} // unlike a TextBlock it is no Markdown
		card := map[string]any{
			"$schema": "http://adaptivecards.io/schemas/adaptive-card.json", "type": "AdaptiveCard", "version": "1.4",
			"body": []any{map[string]any{"type": "RichTextBlock", "inlines": []any{text}}},
		}
		return json.Marshal(map[string]any{"type": "message", "attachments": []any{
			map[string]any{"contentType": "application/vnd.microsoft.card.adaptive", "content": card},
		}})
	}
	return encode(id, e)
}

// chatText says on one line what happened, where, and who is behind it.
func chatText(e *apply.Event) string {
	const most = 2000 // bytes
	text := fmt.Sprintf("%s on %s: %s", e.Environment, e.Instance, strings.ReplaceAll(string(e.Type), "_", " "))
	if what := e.Summary(); what != "" {
		text += ": " + what
	}
	if who := e.Doer(); who != "" {
		text += " (" + who + ")"
	}
	return problem.Line(text, most)
}
