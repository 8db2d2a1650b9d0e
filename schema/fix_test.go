package schema

import (
	"fmt"
	"strings"
	"testing"
)

// TestFix: what is certain is a fix, which leaves one violation less and loses
// nothing; what is not certain is none.
func TestFix(t *testing.T) {
	const head = "environment: production\n"
	for _, row := range []struct{ text, fix, hint string }{
		{"extends: low-memory\n", "extends: [low-memory]", "write extends: [low-memory]"},
		{"extends: low-memory, big # both\n", "extends: [low-memory, big] # both", "write extends: [low-memory, big]"},
		{"extends: 'low-memory'\n", "extends: [low-memory]", "write extends: [low-memory]"},
		{"extends: templates/big.yaml\n", "extends: [big]", "write extends: [big]"},
		{"extends: {big: true}\n", "", "write a list, as in extends: [high-throughput]"},
		{"extends: Big One\n", "", "write a list, as in extends: [high-throughput]"},
		{"extends: [low-memroy]\n", "extends: [low-memory]", "did you mean low-memory?; the templates are big, low-memory"},
		{"extends: [low-memory, low-memroy]\n", "", "correct the name, or create the file; the templates are big, low-memory"},
		{"extends: [tiny]\n", "", "correct the name, or create the file; the templates are big, low-memory"},
		{"extends:\n  - templates/big.yaml # x\n", "  - big # x", "write big"},
		{"extends: [../big]\n", "", "write the file's name without templates/ and .yaml, such as high-throughput"},
		{"parameters: {esn_resevoir_size: 512}\n", "parameters: {esn_reservoir_size: 512}", "did you mean esn_reservoir_size?"},
		{"parameters: {\"esn_resevoir_size\": 512}\n", "parameters: {esn_reservoir_size: 512}", "did you mean esn_reservoir_size?"},
		{"parameters:\n  esn_resevoir_size: 512\n  esn_reservoir_size: 640\n", "", "did you mean esn_reservoir_size?"},
		{"parameters: {order: 4}\n", "", "did you mean bseries_max_order?"},
		{"paramters: {}\n", "parameters: {}", "did you mean parameters?"},
		{"parameters: {enable_caching: \"true\"} # é\r\n", "parameters: {enable_caching: true} # é", "write true"},
		{"description: é\nparameters: {enable_caching: 'no'}\n", "parameters: {enable_caching: false}", "write false"},
		{"parameters: {bseries_max_order: 0x10}\n", "parameters: {bseries_max_order: 16}", "write 16"},
		{"parameters: {bseries_max_order: 010}\n", "", ""},
		{"parameters: {bseries_max_order: |\n  4}\n", "", ""},
		{"environments: production\n", "", "did you mean environment?"},
		{"parameters: {bseries_max_order: 99}\n", "", ""},
	} {
		in := *planInput(row.text)
		for _, path := range Extends(in.Files[1]) {
			if path != "templates/low-memroy.yaml" && path != "templates/tiny.yaml" {
				in.Files = append(in.Files, NewFile(path, []byte("parameters: {}\n")))
			}
		}
		in.Templates = []string{"big", "low-memory"}
		rules := Default().For("production")
		_, before := rules.Load(in)
		if before == nil {
			t.Errorf("%q is valid", row.text)
			continue
		}
		v := before.List[0]
		if row.hint != "" && v.Hint != row.hint {
			t.Errorf("%q: hint %q, want %q", row.text, v.Hint, row.hint)
		}
		if row.fix == "" || v.Fix == nil {
			if row.fix != "" || v.Fix != nil {
				t.Errorf("%q: fix %+v, want %q", row.text, v.Fix, row.fix)
			}
			continue
		}
		lines := strings.Split(strings.TrimSuffix(head+row.text, "\n"), "\n")
		if v.Fix.New != row.fix || v.Fix.Old != strings.TrimRight(lines[v.Fix.Line-1], "\r") || v.Fix.File != "production.yaml" {
			t.Errorf("%q: fix %+v, want %q", row.text, v.Fix, row.fix)
		}
		lines[v.Fix.Line-1] = v.Fix.New
		text := ""
		for _, line := range lines {
			text += fmt.Sprintln(line)
		}
		in.Files[1] = NewFile("production.yaml", []byte(text))
		for _, name := range []string{"big", "low-memory"} {
			in.Files = append(in.Files, NewFile("templates/"+name+".yaml", []byte("parameters: {}\n")))
		}
		if _, after := rules.Load(in); after != nil && after.Total >= before.Total {
			t.Errorf("%q: after the fix %v", row.text, after)
		}
	}
}
