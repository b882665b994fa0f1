// What Go's text/template makes of the templates in crates/export/src/ollama, as Ollama calls it: messages with roles, and the system message
// by itself too. Run in the repository's root: go run tests/golden/ollama/render.go > tests/golden/ollama/rendered.json
package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type Case struct {
	Name     string    `json:"name"`
	Template string    `json:"template"`
	Messages []Message `json:"messages"`
	Text     string    `json:"text"`
}

func main() {
	user := func(text string) Message { return Message{"user", text} }
	assistant := func(text string) Message { return Message{"assistant", text} }
	system := Message{"system", "Answer in one word."}
	conversations := [][]Message{
		{user("What is the capital of France?")},
		{system, user("What is the capital of France?")},
		{system, user("Hi there"), assistant("Hello!"), user("2 < 3 & \"4\"\nBye?")},
	}
	files, err := filepath.Glob("crates/export/src/ollama/*.tmpl")
	if err != nil || len(files) == 0 {
		panic("run in the repository's root")
	}
	var cases []Case
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			panic(err)
		}
		parsed := template.Must(template.New("").Parse(string(source)))
		for _, messages := range conversations {
			data := map[string]any{"Messages": messages, "System": ""}
			if messages[0].Role == "system" {
				data["System"] = messages[0].Content
			}
			var out strings.Builder
			if err := parsed.Execute(&out, data); err != nil {
				panic(err)
			}
			name := strings.TrimSuffix(filepath.Base(file), ".tmpl")
			cases = append(cases, Case{name, string(source), messages, out.String()})
		}
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", " ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(cases); err != nil {
		panic(err)
	}
}
