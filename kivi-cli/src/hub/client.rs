//! Requests to the hub, and what their failures mean.

use std::io::Read;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::Wanted;
use super::settings::Remote;

/// How long a server may be silent.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks for the files of one repository.
pub struct Client {
    agent: Agent,
    remote: Remote,
    wanted: Wanted,
}

/// What the hub says about a file.
#[derive(Debug)]
pub struct Metadata {
    /// Names the content; for large files it is their SHA-256.
    pub etag: String,
    /// Bytes.
    pub size: u64,
}

impl Client {
    /// A client for one repository.
    pub fn new(remote: Remote, wanted: Wanted) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("kivi-cli/", env!("CARGO_PKG_VERSION")))
            // The token is for the hub, not for where it keeps large files.
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .timeout_resolve(Some(PATIENCE))
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE));
        Self { agent: config.build().into(), remote, wanted }
    }

    /// The hub, as messages name it.
    pub fn host(&self) -> &str {
        &self.remote.endpoint
    }

    /// Where the list of files is.
    pub fn listing_url(&self) -> String {
        let Wanted { name, revision } = &self.wanted;
        format!("{}/api/models/{name}/revision/{}", self.remote.endpoint, revision.replace('/', "%2F"))
    }

    /// Where a file is. Names are plain by now.
    pub fn file_url(&self, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{file}", self.remote.endpoint, self.wanted.name)
    }

    /// A whole small answer.
    pub fn text(&self, url: &str, max_bytes: u64) -> Result<Vec<u8>> {
        let response = self.checked(self.get(url, None)?)?;
        let mut bytes = Vec::new();
        let read = response.into_body().into_reader().take(max_bytes + 1).read_to_end(&mut bytes);
        read.map_err(|error| anyhow!("{}: {} broke off: {error}; try again", self.wanted.name, self.host()))?;
        if bytes.len() as u64 > max_bytes {
            bail!("{}: {} answered with more than {max_bytes} bytes", self.wanted.name, self.host());
        }
        Ok(bytes)
    }

    /// A file from byte `start` on, whatever the status of the answer.
    pub fn get(&self, url: &str, start: Option<u64>) -> Result<Response<Body>> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.remote.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(start) = start {
            request = request.header("range", format!("bytes={start}-"));
        }
        request.call().map_err(|error| self.unreachable(&error))
    }

    /// Size and ETag of a file. The first answer has them, though it may send elsewhere for the file itself; only a
    /// path without a host is another name of the same file.
    pub fn metadata(&self, url: &str) -> Result<Metadata> {
        let mut url = url.to_owned();
        for _ in 0..5 {
            let mut request = self.agent.head(&url).config().max_redirects(0).build();
            if let Some(token) = &self.remote.token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| self.unreachable(&error))?;
            match header(&response, "location").filter(|to| to.starts_with('/') && !to.starts_with("//")) {
                Some(path) if response.status().is_redirection() => url = self.absolute(&path),
                _ if response.status().is_redirection() => return self.described(&response),
                _ => return self.described(&self.checked(response)?),
            }
        }
        bail!("{}: {} sends in circles; try again later", self.wanted.name, self.host())
    }

    /// A path on the endpoint's host.
    fn absolute(&self, path: &str) -> String {
        let (scheme, rest) =
            self.remote.endpoint.split_once("://").unwrap_or(("https", &self.remote.endpoint));
        format!("{scheme}://{}{path}", rest.split('/').next().unwrap_or(rest))
    }

    fn described(&self, response: &Response<Body>) -> Result<Metadata> {
        let etag = header(response, "x-linked-etag").or_else(|| header(response, "etag"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
        let size = header(response, "x-linked-size");
        let size =
            size.or_else(|| header(response, "content-length").filter(|_| response.status().is_success()));
        match (etag, size.and_then(|size| size.parse().ok())) {
            (Some(etag), Some(size)) if crate::hub_name::is_plain(&etag) => Ok(Metadata { etag, size }),
            _ => bail!(
                "{}: {} does not say what its files are (ETag and size); is HF_ENDPOINT right?",
                self.wanted.name,
                self.host()
            ),
        }
    }

    /// An answer that is one, or what its status means.
    pub fn checked(&self, response: Response<Body>) -> Result<Response<Body>> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let code = header(&response, "x-error-code").unwrap_or_default();
        let Wanted { name, revision } = &self.wanted;
        let (host, token) = (self.host(), self.remote.token.is_some());
        match (code.as_str(), status) {
            ("RevisionNotFound", _) => {
                bail!("{name}: has no revision {revision} on {host}; give another --revision")
            }
            ("EntryNotFound", _) => {
                bail!("{name}: a file of revision {revision} is gone from {host}; try again")
            }
            ("GatedRepo", _) | (_, StatusCode::FORBIDDEN) => {
                bail!("{name}: {}", refused(host, &self.wanted, token))
            }
            ("", StatusCode::UNAUTHORIZED) if token => {
                bail!("{name}: {}", refused(host, &self.wanted, token))
            }
            (_, StatusCode::UNAUTHORIZED) if !token => bail!(
                "{name}: no such directory, and on {host} it is not there, private or gated; {}",
                refused(host, &self.wanted, token)
            ),
            (_, StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND) => bail!(
                "{name}: no such directory, and not found on {host}; check the name; a private one looks the same: \
                 set HF_TOKEN to a token that may read it"
            ),
            _ => bail!(
                "{name}: {host} answered {status}; try again later, or with --offline what is in the cache"
            ),
        }
    }

    /// Why there was no answer.
    fn unreachable(&self, error: &ureq::Error) -> anyhow::Error {
        let (name, host) = (&self.wanted.name, self.host());
        anyhow!(
            "{name}: no such directory, and {host} cannot be reached: {error}; with --offline what is in the cache is used"
        )
    }
}

/// What to do about a repository that is not for everybody.
fn refused(host: &str, wanted: &Wanted, token: bool) -> String {
    let page = format!("{host}/{}", wanted.name);
    if token {
        format!("the token may not read it: accept its licence on {page}, or set HF_TOKEN to another token")
    } else {
        format!(
            "accept its licence on {page}, and set HF_TOKEN to a token or write it to the file token in HF_HOME"
        )
    }
}

/// A header's text.
pub fn header(response: &Response<Body>, name: &str) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_owned())
}
