// What a mini-program has and node 20 has not: wx.connectSocket, over a real WebSocket (RFC 6455, text frames
// of a server that sends each in one piece). Like WeChat's, `send` on a socket that is not open fails without
// throwing, and nothing is said to whoever listens.
import { createHash, randomBytes } from 'node:crypto';
import { request } from 'node:http';

const GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
const [TEXT, CLOSE, PING, PONG] = [1, 8, 9, 10];

function frame(opcode, payload) {
  const mask = randomBytes(4), length = payload.length;
  const head = length < 126 ? Buffer.from([0x80 | opcode, 0x80 | length]) : Buffer.from([0x80 | opcode, 0xfe, length >> 8, length & 0xff]);
  return Buffer.concat([head, mask, payload.map((byte, at) => byte ^ mask[at % 4])]);
}

// The first frame of what has come, and what is left; null while it is not all there.
function parse(come) {
  if (come.length < 2) return null;
  let length = come[1] & 0x7f, at = 2;
  if (length === 126) { if (come.length < 4) return null; length = come.readUInt16BE(2); at = 4; }
  if (length === 127) { if (come.length < 10) return null; length = Number(come.readBigUInt64BE(2)); at = 10; }
  if (come.length < at + length) return null;
  return { opcode: come[0] & 0x0f, payload: come.subarray(at, at + length), rest: come.subarray(at + length) };
}

export class Task {
  constructor(url, header) {
    this.on = { open: () => {}, message: () => {}, close: () => {} };
    this.socket = null;
    this.code = 1006;
    this.sent = [];
    const key = randomBytes(16).toString('base64');
    const asked = request(url.replace(/^ws/, 'http'), {
      headers: { ...header, Connection: 'Upgrade', Upgrade: 'websocket', 'Sec-WebSocket-Version': '13', 'Sec-WebSocket-Key': key },
    });
    asked.on('upgrade', (answer, socket, head) => {
      const proof = createHash('sha1').update(key + GUID).digest('base64');
      if (answer.headers['sec-websocket-accept'] !== proof) throw new Error('this is no WebSocket');
      this.socket = socket;
      let come = head;
      const read = () => {
        for (let found; (found = parse(come));) {
          come = found.rest;
          if (found.opcode === PING) socket.write(frame(PONG, found.payload));
          if (found.opcode === TEXT) this.on.message({ data: found.payload.toString() });
          if (found.opcode === CLOSE) {
            this.code = found.payload.readUInt16BE(0);
            socket.end(frame(CLOSE, found.payload.subarray(0, 2)));
          }
        }
      };
      socket.on('data', data => { come = Buffer.concat([come, data]); read(); });
      socket.on('error', () => {});
      socket.on('close', () => this.gone());
      this.on.open({ header: answer.headers });
      read();
    });
    asked.on('response', answer => { answer.resume(); this.gone(); });
    asked.on('error', () => this.gone());
    asked.end();
  }
  gone() { this.socket = null; this.on.close({ code: this.code, reason: '' }); }
  onOpen(listener) { this.on.open = listener; }
  onMessage(listener) { this.on.message = listener; }
  onClose(listener) { this.on.close = listener; }
  send({ data }) {
    if (!this.socket) return;
    this.sent.push(JSON.parse(data));
    this.socket.write(frame(TEXT, Buffer.from(data)));
  }
  close({ code = 1000 } = {}) {
    this.code = code;
    this.socket.end(frame(CLOSE, Buffer.from([code >> 8, code & 0xff])));
  }
  // The network is gone, in the middle of whatever is under way.
  cut() { this.socket.destroy(); }
}

export const tasks = [];

export function connectSocket(host) {
  return ({ url, header }) => {
    const task = new Task(url.replace('wss://mall.example.com', host), header);
    tasks.push(task);
    return task;
  };
}
