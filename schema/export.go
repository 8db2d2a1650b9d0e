package schema

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The JSON Schema of configuration files, without what a Schema declares. What is
// read as text may look like a number or a bool to an editor, hence its types.
//
//go:embed files.schema.json
var filesSchema []byte

type object = map[string]any

// JSONSchema describes the configuration files in JSON Schema, for editors
// (yaml-language-server, which speaks draft 7 and below) and
// GET /v1/config/schema. One schema fits all files, since an editor finds it by
// the same line everywhere: a file that says its environment is an
// environment's, any other one is base.yaml or a template, must have
// parameters, and can neither extend nor experiment. It cannot say what
// depends on a file's name, on the other files or on the spelling of YAML:
// `agent validate` does.
func (s *Schema) JSONSchema() ([]byte, error) {
	var schema object
	if err := json.Unmarshal(filesSchema, &schema); err != nil {
		return nil, fmt.Errorf("decode the JSON Schema of files: %w", err)
	}
	at := func(path ...string) object {
		o := schema
		for _, key := range path {
			o = o[key].(object)
		}
		return o
	}
	at("properties", keyEnvironment)["enum"] = s.environments
	at("definitions", "parameters")["description"] = "What this file sets. Across files: " + strings.Join(s.relations("%s"), "; ") + "."
	for _, p := range s.widest() {
		at("definitions", "parameters", "properties")[p.Name] = p.jsonSchema()
	}
	maps.Copy(at("definitions", "experiment", "properties", keyPercent), s.first().percent.jsonSchema())
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(schema); err != nil {
		return nil, fmt.Errorf("encode the JSON Schema: %w", err)
	}
	return b.Bytes(), nil
}

// widest lists the parameters with all that they may be in some environment:
// base.yaml and templates serve them all.
func (s *Schema) widest() []Parameter {
	list := s.first().Parameters()
	for _, env := range s.environments {
		for i, other := range s.rules[env].parameters {
			p := &list[i]
			if float(other.Minimum) < float(p.Minimum) {
				p.Minimum = other.Minimum
			}
			if float(other.Maximum) > float(p.Maximum) {
				p.Maximum = other.Maximum
			}
			p.Values = slices.Concat(p.Values, slices.DeleteFunc(slices.Clone(other.Values), func(v string) bool { return slices.Contains(p.Values, v) }))
		}
	}
	return list
}

func (p *Parameter) jsonSchema() object {
	o := object{}
	switch p.Type {
	case "bool":
		o["type"] = "boolean"
	case "string":
		o["enum"] = p.Values
	case "int":
		o["type"], o["minimum"], o["maximum"] = "integer", p.Minimum, p.Maximum
	case "number":
		o["type"], o["minimum"], o["maximum"] = "number", p.Minimum, p.Maximum
	}
	if !p.isPercent() {
		o["description"] = p.title() + "." + p.effects()
	}
	if !p.Default.IsZero() {
		o["default"] = p.Default
	}
	return o
}

// title is the description of a parameter with its unit.
func (p *Parameter) title() string {
	if p.Unit == "" {
		return p.Description
	}
	return p.Description + " (" + p.Unit + ")"
}

func (p *Parameter) effects() (s string) {
	if p.Impact != "" {
		s += " Affects " + p.Impact + "."
	}
	if p.Critical {
		s += " Critical: the engine rebuilds components."
	}
	return s
}

// Markdown returns the table of parameters and the rules between them, for
// documentation. What holds in some environments only is said of them.
func (s *Schema) Markdown() string {
	var b strings.Builder
	b.WriteString("| parameter | type | range | default | critical | description | impact |\n|---|---|---|---|---|---|---|\n")
	for _, p := range s.first().parameters {
		ranges, value, critical := p.Range, "none (optional)", "no"
		for _, env := range s.environments {
			if other := s.rules[env].Parameter(p.Name).Range; other != p.Range {
				ranges += fmt.Sprintf(" (%s: %s)", env, other)
			}
		}
		if !p.Default.IsZero() {
			value = p.Default.String()
		}
		if p.Critical {
			critical = "yes"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s | %s |\n",
			p.Name, p.Type, strings.ReplaceAll(ranges, "|", ", "), value, critical, p.title(), p.Impact)
	}
	b.WriteString("\nRules between parameters:\n\n")
	for _, rule := range s.relations("`%s`") {
		b.WriteString("* " + rule + "\n")
	}
	return b.String()
}

// relations lists the rules between parameters, with the environments that have
// them if not all do.
func (s *Schema) relations(format string) (list []string) {
	in := map[string][]string{}
	for _, env := range s.environments {
		for _, rule := range s.rules[env].Relations() {
			if in[rule] == nil {
				list = append(list, rule)
			}
			in[rule] = append(in[rule], string(env))
		}
	}
	for i, rule := range list {
		list[i] = fmt.Sprintf(format, rule)
		if len(in[rule]) < len(s.environments) {
			list[i] += " (" + strings.Join(in[rule], ", ") + ")"
		}
	}
	return list
}
