//! Where the answers come from: files, an agent, or the sync thread of this
//! process.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use vmap_proxy_compiler::explain::answer::{
    Code, Decision, Detail, Explanation, Question as PacketQuestion, ServiceAnswer,
};
use vmap_proxy_compiler::model::{Family, ProxyConfig};
use vmap_proxy_compiler::ruleset::maps::Map;

use crate::cli::StateSource;
use crate::query::answer::answer;
use crate::query::client::{Client, ClientError};
use crate::query::offline::Offline;
use crate::query::protocol::{
    AddressAnswer, Answer, ElementGroup, JournalAnswer, List, NodeAnswer, Question, ServiceDigest, ServicesAnswer,
    StatusAnswer,
};
use crate::query::server;
use crate::source::manifests::SourceError;

/// The reason why there is no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// The manifests could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The agent does not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The Service does not exist, or is not followed.
    #[error("there is no Service {name} {place}")]
    NoService {
        /// `namespace/name`
        name: String,
        /// Where it was looked for.
        place: &'static str,
    },
    /// The sync thread of this process has ended.
    #[error("the agent is ending")]
    Ending,
    /// The answer is to another question.
    #[error("the answer does not fit the question; are the agent and this program of the same version?")]
    Unexpected,
}

/// The source of the answers.
#[derive(Debug)]
pub enum Asked {
    /// The state that files make.
    Files(Box<Offline>),
    /// A running agent.
    Agent(Client),
    /// The sync thread of this process. Blocks its thread until there is an answer.
    Own(mpsc::Sender<server::Asked>, Arc<server::Facts>),
}

impl Asked {
    /// Reads files.
    ///
    /// # Errors
    /// If a path can't be read.
    pub fn files(manifests: Vec<PathBuf>, proxy: ProxyConfig) -> Result<Self, AskError> {
        Ok(Self::Files(Box::new(Offline::read(manifests, proxy)?)))
    }

    /// Connects to an agent.
    ///
    /// # Errors
    /// If none answers.
    pub fn agent(socket: &Path) -> Result<Self, AskError> {
        Ok(Self::Agent(Client::connect(socket)?))
    }

    /// Opens the source that the command line names.
    ///
    /// # Errors
    /// If files can't be read, or no agent answers.
    pub fn open(source: StateSource) -> Result<Self, AskError> {
        match source {
            StateSource::Files { manifests, proxy } => Self::files(manifests, *proxy),
            StateSource::Node { socket, .. } => Self::agent(&socket),
        }
    }

    /// Asks one question.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn ask(&mut self, question: &Question) -> Result<Answer, AskError> {
        match self {
            Self::Files(offline) => Ok(answer(&offline.state(), question)),
            Self::Agent(client) => Ok(client.ask(question)?),
            Self::Own(questions, facts) => {
                let (reply, answered) = oneshot::channel();
                let asked = server::Asked { question: question.clone(), reply };
                questions.blocking_send(asked).map_err(|_| AskError::Ending)?;
                let mut answer = answered.blocking_recv().map_err(|_| AskError::Ending)?;
                facts.add_to(&mut answer);
                Ok(answer)
            }
        }
    }

    /// Asks one question, and calls `each` with every page of the answer.
    ///
    /// # Errors
    /// If there is no answer, or only a part of it.
    pub fn ask_all(&mut self, question: &Question, mut each: impl FnMut(Answer)) -> Result<(), AskError> {
        if let Self::Agent(client) = self {
            return Ok(client.ask_all(question, each)?);
        }
        let mut next = Some(question.clone());
        while let Some(question) = next {
            let page = self.ask(&question)?;
            next = question.behind(&page);
            each(page);
        }
        Ok(())
    }

    /// Calls `each` with the part of every page that `read` takes from it.
    fn pages<T>(
        &mut self,
        question: &Question,
        read: impl Fn(Answer) -> Option<T>,
        mut each: impl FnMut(T),
    ) -> Result<(), AskError> {
        let mut is_other = false;
        self.ask_all(question, |page| match read(page) {
            Some(page) => each(page),
            None => is_other = true,
        })?;
        if is_other { Err(AskError::Unexpected) } else { Ok(()) }
    }

    /// Everything that `read` takes from the pages.
    fn collected<T>(
        &mut self,
        question: &Question,
        read: impl Fn(Answer) -> Option<Vec<T>>,
    ) -> Result<Vec<T>, AskError> {
        let mut all = Vec::new();
        self.pages(question, read, |page| all.extend(page))?;
        Ok(all)
    }

    /// The node.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn node(&mut self) -> Result<NodeAnswer, AskError> {
        match self.ask(&Question::Node)? {
            Answer::Node(node) => Ok(node),
            _ => Err(AskError::Unexpected),
        }
    }

    /// A Service.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn service(&mut self, name: &str) -> Result<ServiceAnswer, AskError> {
        match self.ask(&Question::Service { name: name.to_owned() })? {
            Answer::Service(answer) => Ok(*answer),
            _ => Err(AskError::Unexpected),
        }
    }

    /// A Service that exists.
    ///
    /// # Errors
    /// As [`Self::ask`], and [`AskError::NoService`].
    pub fn existing_service(&mut self, name: &str) -> Result<ServiceAnswer, AskError> {
        let service = self.service(name)?;
        let is_no_service = |reason: &Decision| reason.code == Code::NoService;
        let is_missing = service.ports.is_empty() && !service.programmed && service.reasons.iter().any(is_no_service);
        if !is_missing {
            return Ok(service);
        }
        let place = match self {
            Self::Files(_) => "in these files",
            Self::Agent(_) | Self::Own(..) => {
                "here (an agent on an API server follows no headless Service and none with the label \
                 service.kubernetes.io/service-proxy-name; kubectl get services -A --show-labels lists all)"
            }
        };
        Err(AskError::NoService { name: name.to_owned(), place })
    }

    /// A packet. If it meets no frontend, the Service that has the destination
    /// address is looked for, page by page.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn packet(&mut self, packet: &PacketQuestion, about: Option<String>) -> Result<Explanation, AskError> {
        let answer = self.packet_about(packet, about.clone())?;
        if answer.service.is_some() || about.is_some() {
            return Ok(answer);
        }
        match self.find_address(packet.destination)? {
            Some(about) => self.packet_about(packet, Some(about)),
            None => Ok(answer),
        }
    }

    fn packet_about(&mut self, packet: &PacketQuestion, about: Option<String>) -> Result<Explanation, AskError> {
        match self.ask(&Question::Packet { packet: packet.clone(), about })? {
            Answer::Packet(answer) => Ok(*answer),
            _ => Err(AskError::Unexpected),
        }
    }

    /// The Service that has an address, looked for page by page.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn find_address(&mut self, address: IpAddr) -> Result<Option<String>, AskError> {
        let question = Question::FindAddress { address, after: None };
        let read = |page| match page {
            Answer::Address(page) => Some(page),
            _ => None,
        };
        let mut found = None;
        self.pages(&question, read, |page: AddressAnswer| found = page.found)?;
        Ok(found)
    }

    /// The state of the agent.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn status(&mut self) -> Result<StatusAnswer, AskError> {
        match self.ask(&Question::Status)? {
            Answer::Status(answer) => Ok(*answer),
            _ => Err(AskError::Unexpected),
        }
    }

    /// A page of the journal, the newest sync first.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn journal(&mut self, before: Option<u64>) -> Result<JournalAnswer, AskError> {
        match self.ask(&Question::Journal { before })? {
            Answer::Journal(page) => Ok(page),
            _ => Err(AskError::Unexpected),
        }
    }

    /// The Services of which a port has no endpoint.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn without_endpoints(&mut self) -> Result<Vec<String>, AskError> {
        let read = |page| match page {
            Answer::Names(page) => Some(page.names),
            _ => None,
        };
        self.collected(&Question::WithoutEndpoints { after: None }, read)
    }

    /// The digests of all Services.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn digests(&mut self) -> Result<Vec<ServiceDigest>, AskError> {
        let read = |page| match page {
            Answer::Digests(page) => Some(page.services),
            _ => None,
        };
        self.collected(&Question::Digests { after: None }, read)
    }

    /// Calls `each` with every Service, or those of a namespace, in the order of
    /// their names.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn each_service(
        &mut self,
        namespace: Option<&str>,
        detail: Detail,
        mut each: impl FnMut(ServiceAnswer),
    ) -> Result<(), AskError> {
        let namespace = namespace.map(str::to_owned);
        let question = Question::Services { namespace, detail, matching: None, limit: None, after: None };
        let read = |page| match page {
            Answer::Services(page) => Some(page.services),
            _ => None,
        };
        self.pages(&question, read, |page| page.into_iter().for_each(&mut each))
    }

    /// Calls `each` with every page of the lines of a list of all Services, or of
    /// those of a namespace.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn each_line(
        &mut self,
        list: List,
        wide: bool,
        namespace: Option<String>,
        mut each: impl FnMut(&str),
    ) -> Result<(), AskError> {
        let read = |page| match page {
            Answer::Lines(page) => Some(page.text),
            _ => None,
        };
        self.pages(&Question::Lines { list, wide, namespace, after: None }, read, |text| each(&text))
    }

    /// One page of a [`Question::Services`].
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn services(&mut self, question: Question) -> Result<ServicesAnswer, AskError> {
        match self.ask(&question)? {
            Answer::Services(page) => Ok(page),
            _ => Err(AskError::Unexpected),
        }
    }

    /// Calls `each` with every page of the programmed elements of some maps, or of
    /// all.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn each_group(&mut self, maps: &[Map], each: impl FnMut(Vec<ElementGroup>)) -> Result<(), AskError> {
        let maps = maps.iter().map(|map| map.name().to_owned()).collect();
        self.pages(&Question::Elements { maps, only: None, after: None }, groups, each)
    }

    /// The programmed elements of one owner.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn elements_of(&mut self, owner: &str) -> Result<Vec<ElementGroup>, AskError> {
        let only = Some(owner.to_owned());
        groups(self.ask(&Question::Elements { maps: Vec::new(), only, after: None })?).ok_or(AskError::Unexpected)
    }

    /// The addresses of a Pod, IPv4 first: those of a Pod or a slice in files; an agent
    /// follows no Pods, and knows those that its slices refer to.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn pod_addresses(&mut self, namespace: &str, name: &str) -> Result<Vec<IpAddr>, AskError> {
        let of_object = match self {
            Self::Files(offline) => offline.pod_addresses(namespace, name),
            Self::Agent(_) | Self::Own(..) => Vec::new(),
        };
        let mut found = Vec::new();
        for family in Family::ALL {
            found.extend(match of_object.iter().find(|address| Family::of(**address) == family) {
                Some(address) => Some(*address),
                None => self.find_pod(format!("{namespace}/{name}"), family)?,
            });
        }
        Ok(found)
    }

    /// The address of a Pod in the slices, looked for page by page.
    fn find_pod(&mut self, pod: String, family: Family) -> Result<Option<IpAddr>, AskError> {
        let read = |page| match page {
            Answer::Pod(page) => Some(page.address),
            _ => None,
        };
        let mut found = None;
        self.pages(&Question::FindPod { pod, family, after: None }, read, |address| found = address)?;
        Ok(found)
    }
}

fn groups(answer: Answer) -> Option<Vec<ElementGroup>> {
    match answer {
        Answer::Elements(page) => Some(page.groups),
        _ => None,
    }
}
