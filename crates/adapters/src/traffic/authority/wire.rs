//! Puts questions from the wire to the zones and their replies back: header bits, EDNS, response codes.
//!
//! Invariant: every well-formed question gets exactly one response, with the question as it was spelled.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hickory_proto::op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Record};
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;

use super::Counters;
use super::zone::{Reply, Zones};

/// The largest datagram sent, so that none is fragmented (DNS flag day 2020).
const PAYLOAD_BYTES_MAX: u16 = 1232;

#[derive(Debug)]
pub(super) struct Wire {
    pub(super) zones: Arc<Zones>,
    pub(super) counters: Arc<Counters>,
}

/// What goes back besides the question.
struct Response {
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    soa: Option<Record>,
}

impl Response {
    fn error(code: ResponseCode) -> Response {
        Response { code, authoritative: false, answers: Vec::new(), soa: None }
    }
}

impl Wire {
    fn respond(&self, request: &Request) -> Response {
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Response::error(ResponseCode::BADVERS);
        }
        if request.metadata.op_code != OpCode::Query {
            return Response::error(ResponseCode::NotImp);
        }
        let [query] = request.queries.queries() else {
            return Response::error(ResponseCode::FormErr);
        };
        if query.query_class() != DNSClass::IN {
            return Response::error(ResponseCode::Refused);
        }
        let found = |code, answers, soa| Response { code, authoritative: true, answers, soa };
        match self.zones.answer(query.original().name(), query.query_type()) {
            Reply::Records(records) => found(ResponseCode::NoError, records, None),
            Reply::NoData(soa) => found(ResponseCode::NoError, Vec::new(), Some(soa)),
            Reply::NoSuchName(soa) => found(ResponseCode::NXDomain, Vec::new(), Some(soa)),
            Reply::Refused => Response::error(ResponseCode::Refused),
            Reply::NotYet => Response::error(ResponseCode::ServFail),
        }
    }
}

#[async_trait::async_trait]
impl RequestHandler for Wire {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut handle: R) -> ResponseInfo {
        self.counters.questions.fetch_add(1, Ordering::Relaxed);
        let response = self.respond(request);
        if response.code == ResponseCode::Refused {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
        }
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().min(PAYLOAD_BYTES_MAX));
            edns
        });
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = response.code;
        metadata.authoritative = response.authoritative;
        let message = MessageResponseBuilder::new(&request.queries, edns.as_ref()).build(
            metadata,
            &response.answers,
            [],
            response.soa.as_ref(),
            [],
        );
        match handle.send_response(message).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, to = %request.src(), "a DNS response could not be sent");
                failed(&request.metadata)
            }
        }
    }
}

fn failed(request: &Metadata) -> ResponseInfo {
    let mut metadata = Metadata::new(request.id, MessageType::Response, request.op_code);
    metadata.response_code = ResponseCode::ServFail;
    ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() })
}
