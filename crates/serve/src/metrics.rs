//! `/metrics`: vLLM's names for what vLLM has too, so that its dashboards work; `taper:` for adapters and limits.

use crate::app::AppOptions;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;
use taper_infer::{Service, ServiceOptions};

/// What Prometheus asks for and understands.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Label = [(&'static str, String); 1];

/// All that is counted here; what the service counts is asked of it at each scrape.
pub(crate) struct Metrics {
    registry: Registry,
    first_token: Histogram,
    between_tokens: Histogram,
    per_token: Histogram,
    whole: Histogram,
    queued: Histogram,
    finished: Family<Label, Counter>,
    responses: Family<Label, Counter>,
    adapter_requests: Family<Label, Counter>,
    adapter_prompt_tokens: Family<Label, Counter>,
    adapter_generation_tokens: Family<Label, Counter>,
}

impl Metrics {
    pub(crate) fn new(service: &Service, service_options: &ServiceOptions, options: &AppOptions) -> Self {
        let short = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        let long = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0];
        let mut metrics = Self {
            registry: Registry::default(),
            first_token: Histogram::new(long),
            between_tokens: Histogram::new(short),
            per_token: Histogram::new(short),
            whole: Histogram::new(long),
            queued: Histogram::new(long),
            finished: Family::default(),
            responses: Family::default(),
            adapter_requests: Family::default(),
            adapter_prompt_tokens: Family::default(),
            adapter_generation_tokens: Family::default(),
        };
        for reason in ["stop", "length", "abort", "error"] {
            drop(metrics.finished.get_or_create(&label("finished_reason", reason)));
        }
        metrics.register();
        let limits = options.limits.clone();
        let (service, service_options) = (service.clone(), *service_options);
        metrics.registry.register_collector(Box::new(Asked {
            service,
            service_options,
            request_timeout: limits.request_timeout,
        }));
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        for (name, help, histogram) in [
            (
                "vllm:time_to_first_token_seconds",
                "From a request to its first piece of text",
                &self.first_token,
            ),
            (
                "vllm:inter_token_latency_seconds",
                "Between two pieces of text of a request",
                &self.between_tokens,
            ),
            (
                "vllm:time_per_output_token_seconds",
                "Time for a token, over each request's tokens after the first",
                &self.per_token,
            ),
            ("vllm:e2e_request_latency_seconds", "From a request to its end", &self.whole),
            ("vllm:request_queue_time_seconds", "Waiting for a place in the batch", &self.queued),
        ] {
            registry.register(name, help, histogram.clone());
        }
        for (name, help, family) in [
            ("vllm:request_success", "Texts that ended, by how", &self.finished),
            ("taper:http_responses", "HTTP answers, by status", &self.responses),
            ("taper:adapter_requests", "Texts asked of an adapter", &self.adapter_requests),
            (
                "taper:adapter_prompt_tokens",
                "Prompt tokens read with an adapter",
                &self.adapter_prompt_tokens,
            ),
            (
                "taper:adapter_generation_tokens",
                "Tokens written with an adapter",
                &self.adapter_generation_tokens,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
    }

    /// The text of a scrape.
    pub(crate) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    pub(crate) fn responded(&self, status: u16) {
        self.responses.get_or_create(&label("status", &status.to_string())).inc();
    }

    pub(crate) fn first_token(&self, since: Duration) {
        self.first_token.observe(since.as_secs_f64());
    }

    pub(crate) fn next_token(&self, since: Duration) {
        self.between_tokens.observe(since.as_secs_f64());
    }

    /// A text has ended.
    pub(crate) fn ended(&self, how: &str, took: Duration) {
        self.finished.get_or_create(&label("finished_reason", how)).inc();
        self.whole.observe(took.as_secs_f64());
    }

    /// What a finished text took.
    pub(crate) fn times(&self, times: taper_infer::Times, tokens: usize) {
        self.queued.observe(times.queued.as_secs_f64());
        if tokens > 1 {
            self.per_token.observe(times.writing.as_secs_f64() / (tokens - 1) as f64);
        }
    }

    pub(crate) fn adapter_requests(&self, name: &str, texts: usize) {
        self.adapter_requests.get_or_create(&label("adapter", name)).inc_by(texts as u64);
    }

    pub(crate) fn adapter_tokens(&self, name: &str, prompt: usize, generation: usize) {
        self.adapter_prompt_tokens.get_or_create(&label("adapter", name)).inc_by(prompt as u64);
        self.adapter_generation_tokens.get_or_create(&label("adapter", name)).inc_by(generation as u64);
    }

    /// An adapter is gone; whoever loads and unloads without end does not fill the memory with names.
    pub(crate) fn forget_adapter(&self, name: &str) {
        let label = label("adapter", name);
        for family in [&self.adapter_requests, &self.adapter_prompt_tokens, &self.adapter_generation_tokens] {
            family.remove(&label);
        }
    }
}

fn label(key: &'static str, value: &str) -> Label {
    [(key, value.to_owned())]
}

/// What is asked of the service at each scrape.
struct Asked {
    service: Service,
    service_options: ServiceOptions,
    request_timeout: Duration,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Asked")
    }
}

impl Collector for Asked {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stats = self.service.stats();
        let options = &self.service_options;
        let used = match stats.cache_bytes {
            0 => 0.0,
            bytes => stats.cache_used_bytes as f64 / bytes as f64,
        };
        let adapter_bytes = options.adapters.max_bytes as f64;
        for (name, help, value) in [
            ("vllm:num_requests_running", "Requests in the batch", stats.running as f64),
            (
                "vllm:num_requests_waiting",
                "Requests that wait for a place in the batch",
                stats.waiting as f64,
            ),
            ("vllm:kv_cache_usage_perc", "Share of the cache that running requests hold, 0 to 1", used),
            ("taper:cache_kept_bytes", "Cache kept for later requests", stats.cache_kept_bytes as f64),
            ("taper:cache_limit_bytes", "Memory for keys and values", options.cache_bytes as f64),
            ("taper:adapter_limit_bytes", "Memory for adapters", adapter_bytes),
            ("taper:batch_limit", "Most requests in the batch", options.engine.batch_size as f64),
            ("taper:queue_limit", "Most requests that wait", options.max_waiting as f64),
            (
                "taper:request_timeout_seconds",
                "From a request to the end of its answer at most",
                self.request_timeout.as_secs_f64(),
            ),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        for (name, help, value) in [
            ("vllm:prompt_tokens", "Prompt tokens, those found in the cache included", stats.prompt_tokens),
            ("vllm:generation_tokens", "Tokens written", stats.generation_tokens),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the cache", stats.prompt_tokens),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the cache", stats.cached_prompt_tokens),
            ("vllm:num_preemptions", "Requests that gave their cache back for others", stats.preemptions),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        self.adapters(&mut encoder)
    }
}

impl Asked {
    fn adapters(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let adapters = self.service.adapters().list();
        for (name, help, of) in [
            (
                "taper:adapter_loads",
                "How often an adapter was read from the disk",
                (|info| info.loads) as fn(&taper_infer::AdapterInfo) -> u64,
            ),
            ("taper:adapter_evictions", "How often an adapter made room for others", |info| info.evictions),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for info in &adapters {
                let labels = label("adapter", &info.name);
                ConstCounter::new(of(info)).encode(metric.encode_family(&labels)?)?;
            }
        }
        let (name, help) = ("taper:adapter_resident_bytes", "Memory that an adapter takes now");
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for info in &adapters {
            let labels = label("adapter", &info.name);
            ConstGauge::new(if info.is_resident { info.bytes as f64 } else { 0.0 })
                .encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
