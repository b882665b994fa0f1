//! A Modelfile: what Ollama needs beside a GGUF file.
//!
//! Its TEMPLATE is a Go template and a checkpoint's is a Jinja one. The two are not translated: a family is recognised by the marks that its
//! template writes, and has a Go template here, which `tests/golden/ollama` holds against the Jinja one. Source of the words: `docs/modelfile.mdx` of
//! `ollama/ollama`.

use crate::{GgufError, Result};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What a Modelfile begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelfileSource {
    /// A GGUF file that holds the whole model, by its name in the Modelfile's folder.
    Model {
        /// The file's name.
        file: String,
    },
    /// A base that Ollama knows or that lies somewhere, and a GGUF adapter, by its name in the Modelfile's folder.
    Adapter {
        /// `llama3.2:1b`, or the path of a GGUF file.
        base: String,
        /// The adapter's name.
        file: String,
    },
}

/// What goes into a Modelfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modelfile<'a> {
    /// The model.
    pub source: ModelfileSource,
    /// The text of the model's chat template, where it has one.
    pub chat_template: Option<&'a str>,
    /// Texts at which a generation stops: those of the tokens that end a turn.
    pub stops: Vec<String>,
    /// A system message that is always there.
    pub system: Option<String>,
}

/// A Modelfile that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenModelfile {
    /// The file.
    pub path: PathBuf,
    /// The family whose template it has.
    pub family: Option<TemplateFamily>,
    /// For people: what it lacks.
    pub notes: Vec<String>,
}

/// Chat formats that have a Go template here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TemplateFamily {
    /// `<|im_start|>role ... <|im_end|>`: Qwen, SmolLM and many others.
    ChatMl,
    /// `<|start_header_id|>role<|end_header_id|> ... <|eot_id|>`: Llama 3.
    Llama3,
    /// `[INST] ...[/INST]`: Mistral from version 3 of its tokenizer on.
    Mistral,
    /// `[INST] ... [/INST]`: Mistral 7B before.
    MistralV1,
    /// `<start_of_turn>role ... <end_of_turn>`: Gemma 2 and 3.
    Gemma,
    /// `<|role|> ... <|end|>`: Phi 3 and 4-mini.
    Phi3,
    /// `<|role|> ... </s>`: Zephyr, TinyLlama.
    Zephyr,
}

impl TemplateFamily {
    /// The family of a chat template, by the marks in its text.
    pub fn of(template: &str) -> Option<Self> {
        let has = |mark: &str| template.contains(mark);
        let inst = has("[INST]") && has("[/INST]") && !has("<<SYS>>");
        // A template that writes another format's marks too, such as one that strips them, is of none.
        let families: Vec<Self> = [
            (Self::ChatMl, has("<|im_start|>") && has("<|im_end|>")),
            (Self::Llama3, has("<|start_header_id|>") && has("<|eot_id|>")),
            (Self::Mistral, inst && !has(" [/INST]")),
            (Self::MistralV1, inst && has(" [/INST]")),
            (Self::Gemma, has("<start_of_turn>") && has("<end_of_turn>")),
            // A role is written out, or put between the bars.
            (Self::Phi3, has("<|end|>") && (has("<|user|>") || has("'<|' + message['role']"))),
            (Self::Zephyr, has("<|user|>") && has("<|assistant|>") && has("eos_token") && !has("<|end|>")),
        ]
        .into_iter()
        .filter_map(|(family, found)| found.then_some(family))
        .collect();
        match families.as_slice() {
            [one] => Some(*one),
            _ => None,
        }
    }

    /// The Go template. BOS is left to the tokenizer, whose file says whether a text begins with it.
    pub fn go_template(self) -> &'static str {
        match self {
            Self::ChatMl => include_str!("ollama/chatml.tmpl"),
            Self::Llama3 => include_str!("ollama/llama3.tmpl"),
            Self::Mistral => include_str!("ollama/mistral.tmpl"),
            Self::MistralV1 => include_str!("ollama/mistral_v1.tmpl"),
            Self::Gemma => include_str!("ollama/gemma.tmpl"),
            Self::Phi3 => include_str!("ollama/phi3.tmpl"),
            Self::Zephyr => include_str!("ollama/zephyr.tmpl"),
        }
    }

    /// The texts that end a turn.
    pub fn stops(self) -> &'static [&'static str] {
        match self {
            Self::ChatMl => &["<|im_end|>"],
            Self::Llama3 => &["<|eot_id|>"],
            Self::Mistral | Self::MistralV1 | Self::Zephyr => &["</s>"],
            Self::Gemma => &["<end_of_turn>"],
            Self::Phi3 => &["<|end|>"],
        }
    }
}

/// Write a Modelfile, whole or not at all.
///
/// # Errors
/// When a text cannot stand in one, or the disk fails.
pub fn write_modelfile(path: &Path, modelfile: &Modelfile<'_>) -> Result<WrittenModelfile> {
    let (text, family, notes) = modelfile.text()?;
    taper_diagnostics::write_bytes_atomically(path, text.as_bytes())
        .map_err(|source| crate::Error::Write { path: path.to_owned(), source })?;
    Ok(WrittenModelfile { path: path.to_owned(), family, notes })
}

impl Modelfile<'_> {
    /// The text, the family and what is to be told.
    fn text(&self) -> Result<(String, Option<TemplateFamily>, Vec<String>), GgufError> {
        let mut out = String::new();
        match &self.source {
            ModelfileSource::Model { file } => {
                let _ = writeln!(out, "FROM ./{}", line("the name of the model's file", file)?);
            }
            ModelfileSource::Adapter { base, file } => {
                let _ = writeln!(out, "FROM {}", line("the name of the base", base)?);
                let _ = writeln!(out, "ADAPTER ./{}", line("the name of the adapter's file", file)?);
            }
        }
        let family = self.chat_template.and_then(TemplateFamily::of);
        let mut notes = Vec::new();
        match (family, self.chat_template) {
            (Some(family), _) => {
                let _ = writeln!(out, "TEMPLATE {}", quoted("the template", family.go_template())?);
            }
            (None, Some(_)) => {
                out.push_str("# No TEMPLATE: the chat template is of no family that has a Go template here; Ollama reads the file's own.\n");
                notes.push(
                    "the chat template is of no known family: the Modelfile has no TEMPLATE, and Ollama makes what it can of the GGUF file's"
                        .into(),
                );
            }
            (None, None) => out.push_str("# No TEMPLATE: the model has no chat template.\n"),
        }
        if self.chat_template.is_some_and(|template| template.contains("Today Date")) {
            notes.push("the chat template writes dates before every conversation, and the Modelfile's TEMPLATE does not".into());
        }
        let mut stops: Vec<&str> =
            self.stops.iter().map(String::as_str).filter(|stop| !stop.is_empty()).collect();
        for stop in family.into_iter().flat_map(|family| family.stops()) {
            if !stops.contains(stop) {
                stops.push(stop);
            }
        }
        for stop in stops {
            let _ = writeln!(out, "PARAMETER stop {}", quoted("a stop text", stop)?);
        }
        let default =
            self.chat_template.filter(|_| family == Some(TemplateFamily::ChatMl)).and_then(default_system);
        if let Some(system) = self.system.as_ref().or(default.as_ref()) {
            let _ = writeln!(out, "SYSTEM {}", quoted("the system message", system)?);
        }
        Ok((out, family, notes))
    }
}

/// The system message that a ChatML template puts before a conversation without one.
fn default_system(template: &str) -> Option<String> {
    let written = ["<|im_start|>system\\n", "<|im_start|>system\n"];
    let start = written.iter().find_map(|mark| Some(template.find(mark)? + mark.len()))?;
    let text = &template[start..start + template[start..].find("<|im_end|>")?];
    // Quotes and braces would be code.
    let plain = !text.is_empty() && !text.contains(['\'', '"', '{', '}', '\\']);
    plain.then(|| text.to_owned())
}

/// A value that ends with its line.
fn line<'a>(what: &str, value: &'a str) -> Result<&'a str, GgufError> {
    if value.is_empty() || value.trim() != value || value.contains(['\n', '\r', '"']) {
        let what = format!("{what}, {value:?}: it is empty, or has quotes, line breaks or spaces around it");
        return Err(GgufError::Modelfile { what });
    }
    Ok(value)
}

/// In three quotes, between which everything but three quotes stands for itself.
fn quoted(what: &str, value: &str) -> Result<String, GgufError> {
    if value.contains("\"\"\"") || value.ends_with('"') {
        return Err(GgufError::Modelfile { what: format!("{what}, {value:?}: quotes end it") });
    }
    Ok(format!("\"\"\"{value}\"\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use taper_testkit::golden;

    fn template(name: &str) -> String {
        fs_err::read_to_string(golden("chat/templates").join(name)).unwrap()
    }

    fn text(modelfile: &Modelfile<'_>) -> String {
        modelfile.text().unwrap().0
    }

    fn plain(template: Option<&str>) -> Modelfile<'_> {
        let source = ModelfileSource::Model { file: "m.gguf".into() };
        Modelfile { source, chat_template: template, stops: Vec::new(), system: None }
    }

    #[test]
    fn families_are_told_by_their_marks() {
        use TemplateFamily::{ChatMl, Gemma, Llama3, Mistral, MistralV1, Phi3, Zephyr};
        for (name, family) in [
            ("chatml.jinja", ChatMl),
            ("chatml_tools.jinja", ChatMl),
            ("llama3.jinja", Llama3),
            ("mistral.jinja", Mistral),
            ("gemma.jinja", Gemma),
            ("gemma_parts.jinja", Gemma),
            ("phi3.jinja", Phi3),
            ("zephyr_whitespace.jinja", Zephyr),
        ] {
            assert_eq!(TemplateFamily::of(&template(name)), Some(family), "{name}");
        }
        let spaced = template("mistral.jinja").replace("[/INST]", " [/INST]");
        assert_eq!(TemplateFamily::of(&spaced), Some(MistralV1));
        assert_eq!(TemplateFamily::of("{{ messages }}"), None);
        assert_eq!(TemplateFamily::of("<|im_start|><|im_end|>[INST][/INST]"), None);
    }

    #[test]
    fn a_modelfile_has_what_was_given() {
        let chatml = template("chatml.jinja");
        let mut modelfile = plain(Some(&chatml));
        modelfile.stops = vec!["<|im_end|>".into(), "<|endoftext|>".into()];
        let written = text(&modelfile);
        assert!(
            written.starts_with("FROM ./m.gguf\nTEMPLATE \"\"\"{{- range .Messages }}<|im_start|>"),
            "{written}"
        );
        let stops: Vec<&str> = written.lines().filter(|line| line.starts_with("PARAMETER stop ")).collect();
        assert_eq!(
            stops,
            ["PARAMETER stop \"\"\"<|im_end|>\"\"\"", "PARAMETER stop \"\"\"<|endoftext|>\"\"\""]
        );
        assert!(written.ends_with("SYSTEM \"\"\"You are a helpful assistant.\"\"\"\n"), "{written}");
        modelfile.system = Some("Answer in JSON.".into());
        modelfile.source = ModelfileSource::Adapter { base: "qwen2.5:0.5b".into(), file: "a.gguf".into() };
        let written = text(&modelfile);
        assert!(written.starts_with("FROM qwen2.5:0.5b\nADAPTER ./a.gguf\n"), "{written}");
        assert!(written.ends_with("SYSTEM \"\"\"Answer in JSON.\"\"\"\n"), "{written}");
    }

    #[test]
    fn an_unknown_template_is_told_and_none_is_made_up() {
        let (written, family, notes) = plain(Some("{{ messages }}")).text().unwrap();
        assert!(!written.contains("\nTEMPLATE ") && written.contains("# No TEMPLATE"), "{written}");
        assert_eq!((family, notes.len()), (None, 1));
        assert!(plain(None).text().unwrap().2.is_empty());
    }

    #[test]
    fn what_would_break_the_file_is_refused() {
        let mut modelfile = plain(None);
        modelfile.system = Some("say \"\"\" and more".into());
        assert!(modelfile.text().unwrap_err().to_string().contains("the system message"));
        for file in ["", "a\nFROM other", "a\"b"] {
            let source = ModelfileSource::Model { file: file.into() };
            assert!(Modelfile { source, ..plain(None) }.text().is_err(), "{file:?}");
        }
    }
}
