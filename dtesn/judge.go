package dtesn

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/schema/problem"
)

const (
	maxReasons = 10      // reasons kept of a rejection
	maxReason  = 1 << 10 // bytes of one
)

// judge turns what came of a batch into an Answer, without the Peer.
func judge(status int, body []byte, err error) api.Answer {
	var broken *exchangeError
	switch {
	case err == nil:
	case errors.As(err, &broken) && !broken.sent:
		return api.Answer{Verdict: api.VerdictNotSent, Err: err}
	case rejects(status) && status != http.StatusOK:
		// The refusal arrived, if not all of its words.
		return api.Answer{Verdict: api.VerdictRejected, Errors: []string{statusText(status) + ", and the reason was cut short"}}
	default:
		return api.Answer{Verdict: api.VerdictUnknown, Err: err, Broken: broken != nil && broken.broken}
	}
	success, known := successOf(body)
	switch {
	case status == http.StatusOK && known && success:
		return api.Answer{Verdict: api.VerdictAccepted}
	case status == http.StatusOK && known, rejects(status) && status != http.StatusOK:
		why := reasons(body)
		if len(why) == 0 {
			why = []string{"the engine answered " + statusText(status) + " without a reason"}
		}
		return api.Answer{Verdict: api.VerdictRejected, Errors: why, Blamed: blamed(body, why)}
	case foreign(status):
		return api.Answer{Verdict: api.VerdictForeign, Err: notAnEngine(
			"POST %s answered %s%s", PathBatchUpdate, statusText(status), because(reasons(body)))}
	case status < 300:
		return api.Answer{Verdict: api.VerdictUnknown, Err: fmt.Errorf(
			"the engine answered %s with %s, which says neither yes nor no", statusText(status), quote(body))}
	}
	return api.Answer{Verdict: api.VerdictUnknown, Err: fmt.Errorf(
		"the engine answered %s%s", statusText(status), because(reasons(body)))}
}

// unknownParameter is how servers call a parameter unknown in words.
var unknownParameter = regexp.MustCompile(`(?i)\bunknown parameter:? *["'\x60]?([A-Za-z_][A-Za-z0-9_.-]*)`)

// blamed returns the parameter that a rejection calls unknown: in the field
// `unknown_parameter`, or in its words.
func blamed(body []byte, why []string) string {
	answer, _ := decodeObject(body)
	if name := decodeAs[string](answer["unknown_parameter"]); name != "" {
		return line(name)
	}
	for _, text := range why {
		if m := unknownParameter.FindStringSubmatch(text); m != nil {
			return strings.TrimRight(m[1], ".-")
		}
	}
	return ""
}

// rejects reports whether an answer with this status may be a rejection.
func rejects(status int) bool {
	switch status {
	case http.StatusOK, http.StatusBadRequest, http.StatusConflict, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

// foreign reports whether a status is one that no engine answers with. Three of
// the 4xx say themselves that they are for now.
func foreign(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return status >= 300 && status < 500
}

// judgeLabel judges the response to POST environment: nil, a *api.ForeignError
// if the label was refused, or another error.
func judgeLabel(label string, status int, body []byte) error {
	success, known := successOf(body)
	switch {
	case status == http.StatusOK && (success || !known):
		// A server that says nothing of success is believed: the next GET
		// current shows the label.
		return nil
	case status == http.StatusOK, foreign(status):
		return &api.ForeignError{Environment: true, Reason: fmt.Sprintf(
			"it answered %s when told that this is %s%s",
			statusText(status), label, because(reasons(body)))}
	}
	return &api.AnswerError{Reason: fmt.Sprintf("the engine answered %s to POST %s, which sets its label%s", statusText(status), PathEnvironment, because(reasons(body)))}
}

// successOf reads the success field; known is false if it is not a bool, or
// body not a JSON object.
func successOf(body []byte) (success, known bool) {
	answer, _ := decodeObject(body)
	text := string(answer["success"])
	return text == "true", text == "true" || text == "false"
}

// reasons takes the engine's words out of an answer, the most telling field
// first: `errors`, FastAPI's `detail` (a string, or a list of {loc, msg}), the
// singular `error`, `message`. A body that is no JSON is its own reason.
func reasons(body []byte) []string {
	answer, err := decodeObject(body)
	if err != nil {
		if text := line(string(body)); text != "" {
			return []string{text}
		}
		return nil
	}
	detail, _ := decodeObject(answer["detail"])
	if found := reasonsOf(detail); len(found) > 0 {
		return found // HTTPException(detail=…) held a whole answer
	}
	return reasonsOf(answer)
}

func reasonsOf(answer map[string]json.RawMessage) []string {
	for _, field := range []string{"errors", "validation_errors", "detail", "error", "message"} {
		if found := reasonsIn(answer[field]); len(found) > 0 {
			return found
		}
	}
	return nil
}

func reasonsIn(raw json.RawMessage) []string {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		if one = line(one); one == "" {
			return nil
		}
		return []string{one}
	}
	var items []json.RawMessage
	if json.Unmarshal(raw, &items) != nil {
		if raw == nil || !bytes.HasPrefix(raw, []byte("{")) {
			return nil
		}
		items = []json.RawMessage{raw}
	}
	var found []string
	for _, item := range items {
		if text := reason(item); text != "" && len(found) < maxReasons {
			found = append(found, text)
		}
	}
	return found
}

// reason is one entry of a list: a string, FastAPI's {loc, msg}, or any other
// JSON as it stands.
func reason(item json.RawMessage) string {
	var text string
	if json.Unmarshal(item, &text) == nil {
		return line(text)
	}
	fastapi, _ := decodeObject(item)
	if message := decodeAs[string](fastapi["msg"]); message != "" {
		var place []string
		for _, part := range decodeAs[[]any](fastapi["loc"]) {
			place = append(place, fmt.Sprint(part))
		}
		if len(place) > 0 {
			message = strings.Join(place, " → ") + ": " + message
		}
		return line(message)
	}
	return line(string(item))
}

// because is reasons as the end of a sentence.
func because(why []string) string {
	if len(why) == 0 {
		return ""
	}
	return ": " + line(strings.Join(why, "; "))
}

// line makes foreign text one line of at most maxReason bytes.
func line(text string) string { return problem.Line(text, maxReason) }

// quote shows the beginning of an answer that was not understood.
func quote(body []byte) string {
	if len(body) == 0 {
		return "nothing"
	}
	const shown = 60
	if len(body) > shown {
		return fmt.Sprintf("%q…", body[:shown])
	}
	return fmt.Sprintf("%q", body)
}

func statusText(status int) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", status, http.StatusText(status)))
}

func notAnEngine(format string, args ...any) *api.ForeignError {
	return &api.ForeignError{Reason: "not a DTESN engine: " + fmt.Sprintf(format, args...)}
}

func isForeign(err error) bool {
	var foreign *api.ForeignError
	return errors.As(err, &foreign)
}
