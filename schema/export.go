package schema

import (
	"bytes"
	"cmp"
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// filesSchema is without what a Schema declares. What is read as text may look like
// a number or a bool to an editor, hence its types.
//
//go:embed files.schema.json
var filesSchema []byte

type object = map[string]any

// JSONSchema describes the configuration files in JSON Schema, for editors
// (yaml-language-server speaks draft 7) and GET /v1/config/schema. One schema fits
// all files. It cannot say what depends on a file's name, on the other files or on
// the spelling of YAML.
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
	parameters := at("definitions", "parameters")
	parameters["description"] = "What this file sets. Across files: " + strings.Join(s.Relations("%s"), "; ") + "."
	for _, p := range s.widest() {
		parameters["properties"].(object)[p.Name] = p.property()
	}
	at("definitions", "experiment", "properties")[keyPercent] = s.first().percent.property()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(schema)
	return b.Bytes(), err
}

// widest lists the parameters with all that they may be in some environment:
// base.yaml and templates serve them all.
func (s *Schema) widest() []Parameter {
	list := s.first().Parameters()
	byNumber := func(v, w Value) int { return cmp.Compare(float(v), float(w)) }
	for _, env := range s.environments {
		for i, other := range s.rules[env].parameters {
			p := &list[i]
			p.Minimum = slices.MinFunc([]Value{p.Minimum, other.Minimum}, byNumber)
			p.Maximum = slices.MaxFunc([]Value{p.Maximum, other.Maximum}, byNumber)
			for _, v := range other.Values {
				if !slices.Contains(p.Values, v) {
					p.Values = append(slices.Clip(p.Values), v)
				}
			}
		}
	}
	return list
}

// A property is a parameter in the JSON Schema.
type property struct {
	Default     Value    `json:"default,omitzero"`
	Description string   `json:"description"`
	Enum        []string `json:"enum,omitempty"`
	Maximum     Value    `json:"maximum,omitzero"`
	Minimum     Value    `json:"minimum,omitzero"`
	Type        string   `json:"type,omitempty"`
}

func (p *Parameter) property() property {
	description := p.Title() + "."
	if p.Impact != "" {
		description += " Affects " + p.Impact + "."
	}
	if p.Critical {
		description += " Critical: the engine rebuilds components."
	}
	types := map[string]string{"int": "integer", "number": "number", "bool": "boolean"}
	return property{p.Default, description, p.Values, p.Maximum, p.Minimum, types[p.Type]}
}

// Title returns the description with the unit.
func (p *Parameter) Title() string {
	if p.Unit == "" {
		return p.Description
	}
	return p.Description + " (" + p.Unit + ")"
}

// Relations lists the rules between parameters, each in format, with the
// environments that have it if not all do.
func (s *Schema) Relations(format string) (list []string) {
	in := map[string][]string{}
	for _, env := range s.environments {
		for _, rel := range s.rules[env].relations {
			if in[rel.rule] == nil {
				list = append(list, rel.rule)
			}
			in[rel.rule] = append(in[rel.rule], string(env))
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
