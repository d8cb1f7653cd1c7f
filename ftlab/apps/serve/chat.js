"use strict";
const TEXTS = {
  en: {
    welcome: "Chat with this server's model", key: "API key", connect: "Connect", other: "中文",
    where: "The terminal that runs ftlab serve shows the key, or the file that keeps it. It stays in this page's memory and is gone when you close the tab.",
    refused: "This is not the server's API key. Copy it whole, from the file that the terminal names, or from API_KEY.",
    gone: "The server does not answer. Is ftlab serve still running?",
    again: "New chat", settings: "Settings", send: "Send", stop: "Stop", close: "Close", model: "Model",
    system: "System prompt", temperature: "Temperature (0: always the likeliest token)", top_k: "top_k (0: off)",
    repetition_penalty: "Repetition penalty (1: off)", max_tokens: "Longest answer, in tokens",
    seed: "Seed (empty: a new one each time)", message: "Your message", you: "You", copy: "Copy", copied: "Copied",
    retry: "Answer again", empty: "Ask something. Enter sends, Shift+Enter starts a new line.",
    stopped: "stopped", cut: "cut at the longest answer: raise it in Settings", tokens: "tokens", speed: "tokens/s",
    invalid: "A setting is out of its range.",
  },
  zh: {
    welcome: "与这个服务器的模型对话", key: "API key", connect: "连接", other: "English",
    where: "运行 ftlab serve 的终端会显示 API key，或保存它的文件。它只留在本页面的内存里，关闭标签页即消失。",
    refused: "这不是该服务器的 API key。请从终端所指的文件（或 API_KEY）中完整复制。",
    gone: "服务器没有响应。ftlab serve 还在运行吗？",
    again: "新对话", settings: "设置", send: "发送", stop: "停止", close: "关闭", model: "模型",
    system: "系统提示", temperature: "温度（0：总取概率最大的 token）", top_k: "top_k（0：关闭）",
    repetition_penalty: "重复惩罚（1：关闭）", max_tokens: "回答最长的 token 数",
    seed: "随机种子（留空：每次不同）", message: "输入消息", you: "你", copy: "复制", copied: "已复制",
    retry: "重新回答", empty: "问点什么吧。回车发送，Shift+回车换行。",
    stopped: "已停止", cut: "已到回答的最大长度，可在设置中调大", tokens: "个 token", speed: "token/秒",
    invalid: "有设置超出范围。",
  },
};
const NUMBERS = ["temperature", "top_p", "top_k", "repetition_penalty", "max_tokens"];
const at = id => document.getElementById(id);
// The API key is kept in this page's memory only: not in its address, not in the browser's storage.
let token = "", messages = [], running = null, language = navigator.language.startsWith("zh") ? "zh" : "en";
const say = name => TEXTS[language][name];

function make(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

// Markdown to elements. Text becomes text nodes: nothing that a model writes is read as HTML.
const INLINE = /`([^`]+)`|\*\*(.+?)\*\*|\*([^*\s](?:[^*]*[^*\s])?)\*|~~(.+?)~~|\[([^\]]+)\]\((https?:[^\s)]+)\)/;

function inline(text) {
  const nodes = [];
  for (let match; (match = INLINE.exec(text)); text = text.slice(match.index + match[0].length)) {
    nodes.push(text.slice(0, match.index));
    const [, code, bold, italic, gone, label, address] = match;
    if (code !== undefined) nodes.push(make("code", "", code));
    else if (label !== undefined) {
      const link = make("a", "", label);
      Object.assign(link, {href: address, target: "_blank", rel: "noopener noreferrer"});
      nodes.push(link);
    } else nodes.push(make(bold ? "strong" : italic ? "em" : "del", "", ...inline(bold ?? italic ?? gone)));
  }
  return [...nodes, text];
}

function lines(rows) {
  return rows.flatMap((row, number) => number ? [make("br"), ...inline(row)] : inline(row));
}

function codeBlock(rows) {
  const text = rows.join("\n"), block = make("pre", "", make("code", "", text));
  block.append(copyButton(() => text));
  return block;
}

function copyButton(text) {
  const button = make("button", "plain", say("copy"));
  button.type = "button";
  button.onclick = async () => {
    await navigator.clipboard.writeText(text());
    button.textContent = say("copied");
  };
  return button;
}

function list(rows) {
  const made = make(/^\s*\d/.test(rows[0]) ? "ol" : "ul");
  const depth = row => row.match(/^\s*/)[0].length;
  for (let i = 0; i < rows.length;) {
    let end = i + 1;
    while (end < rows.length && depth(rows[end]) > depth(rows[i])) end++;
    const item = make("li", "", ...inline(rows[i].replace(ITEM, "")));
    if (end > i + 1) item.append(list(rows.slice(i + 1, end)));
    made.append(item);
    i = end;
  }
  if (made.tagName === "OL") made.start = parseInt(rows[0], 10);
  return made;
}

function table(rows) {
  const cells = row => row.trim().replace(/^\||\|$/g, "").split("|").map(cell => cell.trim());
  const line = (row, tag) => make("tr", "", ...cells(row).map(cell => make(tag, "", ...inline(cell))));
  const [head, , ...body] = rows;
  return make("table", "", make("thead", "", line(head, "th")), make("tbody", "", ...body.map(row => line(row, "td"))));
}

const ITEM = /^\s*(?:[-*+]|\d{1,9}[.)])\s+/;
// What a block's lines look like, and what is made of them; the first that fits the first line takes all that fit.
const BLOCKS = [
  [/^\s*$/, () => []],
  [/^#{1,6}\s/, rows => rows.map(row => make("h3", "", ...inline(row.replace(/^#+\s/, ""))))],
  [/^\s*(?:-{3,}|\*{3,})\s*$/, () => [make("hr")]],
  [/^>/, rows => [make("blockquote", "", ...lines(rows.map(row => row.replace(/^>\s?/, ""))))]],
  [ITEM, rows => [list(rows)]],
  [/^\s*\|/, rows => [/^[\s|:-]+$/.test(rows[1] ?? "") ? table(rows) : make("p", "", ...lines(rows))]],
  [/^/, rows => [make("p", "", ...lines(rows))]],
];

function markdown(text) {
  const rows = text.split("\n"), made = [];
  for (let i = 0; i < rows.length;) {
    let end = i + 1;
    const fence = /^\s*(`{3,}|~{3,})/.exec(rows[i]);
    if (fence) {
      while (end < rows.length && !rows[end].trimStart().startsWith(fence[1])) end++;
      made.push(codeBlock(rows.slice(i + 1, end)));
      i = end + 1;
      continue;
    }
    const kind = row => BLOCKS.find(([shape]) => shape.test(row));
    const block = kind(rows[i]);
    while (end < rows.length && kind(rows[end]) === block && !/^\s*(`{3}|~{3})/.test(rows[end])) end++;
    made.push(...block[1](rows.slice(i, end)));
    i = end;
  }
  return made;
}

function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
  at("language").textContent = say("other");
  at("text").placeholder = say("message");
  at("text").setAttribute("aria-label", say("message"));
  at("talk").querySelector(".empty")?.replaceChildren(say("empty"));
}

async function call(path, options = {}) {
  const headers = {"Authorization": "Bearer " + token, "Content-Type": "application/json"};
  let response;
  try {
    response = await fetch(path, {...options, headers});
  } catch (problem) {
    throw problem.name === "AbortError" ? problem : new Error(say("gone"));
  }
  if (response.ok) return response;
  if (response.status === 401) lock();
  throw new Error(response.status === 401 ? say("refused") : (await response.json()).error.message);
}

function lock() {
  token = "";
  at("enter").hidden = false;
  at("room").hidden = at("again").hidden = at("tune").hidden = true;
  openDrawer(false);
  at("refused").textContent = say("refused");
  at("token").focus();
}

function openDrawer(open) {
  at("drawer").hidden = !open;
  at("tune").setAttribute("aria-expanded", open);
  if (open) at("model").focus();
}

at("enter").onsubmit = async event => {
  event.preventDefault();
  // A header takes Latin letters only.
  token = at("token").value.trim().replace(/[^!-~]/g, "?");
  at("refused").textContent = "";
  try {
    const models = (await (await call("/v1/models")).json()).data;
    at("model").replaceChildren(...models.map(model => new Option(model.id, model.id)));
    at("served").textContent = at("model").value;
    at("enter").hidden = true;
    at("room").hidden = at("again").hidden = at("tune").hidden = false;
    at("token").value = "";
    if (!messages.length) begin();
    at("text").focus();
  } catch (problem) { at("refused").textContent = problem.message; }
};

function begin() {
  running?.abort();
  messages = [];
  at("talk").replaceChildren(make("p", "empty", say("empty")));
  at("error").textContent = "";
}

function bottom(always = false) {
  const talk = at("talk");
  if (always || talk.scrollHeight - talk.scrollTop - talk.clientHeight < 120) talk.scrollTop = talk.scrollHeight;
}

function request() {
  const body = {model: at("model").value, messages: [...messages], stream: true, stream_options: {include_usage: true}};
  for (const name of NUMBERS) body[name] = Number(at(name).value);
  if (at("seed").value) body.seed = Number(at("seed").value);
  if (at("system").value.trim()) body.messages.unshift({role: "system", content: at("system").value});
  return JSON.stringify(body);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "";;) {
    const {value, done} = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.slice("data: ".length);
      if (data === "[DONE]") continue;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}

async function answer() {
  const mine = messages, prose = make("div", "prose waiting"), foot = make("div", "foot quiet");
  const box = make("div", "turn assistant", prose, foot);
  at("talk").querySelectorAll(".retry").forEach(button => button.remove());
  at("talk").append(box);
  bottom(true);
  const started = performance.now(), notes = [];
  let text = "", drawn = true;
  const draw = () => { drawn = true; prose.replaceChildren(...markdown(text)); bottom(); };
  running = new AbortController();
  at("error").textContent = "";
  at("send").hidden = true;
  at("stop").hidden = false;
  try {
    const response = await call("/v1/chat/completions", {method: "POST", body: request(), signal: running.signal});
    for await (const chunk of events(response)) {
      const choice = chunk.choices[0];
      text += choice?.delta.content ?? "";
      if (choice?.finish_reason === "length") notes.push(say("cut"));
      if (chunk.usage) {
        const count = chunk.usage.completion_tokens, seconds = (performance.now() - started) / 1000;
        notes.unshift(`${count} ${say("tokens")}, ${(count / seconds).toFixed(1)} ${say("speed")}`);
      }
      if (drawn) { drawn = false; requestAnimationFrame(draw); }
    }
  } catch (problem) {
    if (problem.name === "AbortError") notes.push(say("stopped"));
    else at("error").textContent = problem.message;
  }
  draw();
  prose.classList.remove("waiting");
  running = null;
  at("send").hidden = false;
  at("stop").hidden = true;
  if (mine !== messages) return;
  if (text) {
    mine.push({role: "assistant", content: text});
    foot.append(notes.join(" · "), copyButton(() => text));
  } else if (!notes.length) box.remove();
  const retry = make("button", "plain retry", say("retry"));
  retry.onclick = () => {
    if (mine.at(-1).role === "assistant") mine.pop();
    box.remove();
    retry.remove();
    answer();
  };
  (box.isConnected ? foot : at("talk")).append(retry);
  bottom();
  at("text").focus();
}

at("ask").onsubmit = event => {
  event.preventDefault();
  if (running || !at("text").value.trim()) return;
  if (NUMBERS.some(name => !at(name).checkValidity())) {
    at("error").textContent = say("invalid");
    return openDrawer(true);
  }
  const text = at("text").value;
  // A question that was not answered is asked anew.
  if (messages.at(-1)?.role === "user") messages.pop();
  messages.push({role: "user", content: text});
  at("talk").querySelector(".empty")?.remove();
  at("talk").append(make("div", "turn user", text));
  at("text").value = "";
  at("text").style.height = "";
  answer();
};
at("again").onclick = () => { begin(); at("text").focus(); };
at("stop").onclick = () => running?.abort();
at("tune").onclick = () => openDrawer(at("drawer").hidden);
at("close").onclick = () => { openDrawer(false); at("tune").focus(); };
at("model").onchange = () => { at("served").textContent = at("model").value; };
at("language").onclick = () => { language = language === "zh" ? "en" : "zh"; translate(); };
at("text").oninput = () => { at("text").style.height = "auto"; at("text").style.height = at("text").scrollHeight + 2 + "px"; };
at("text").onkeydown = event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); at("ask").requestSubmit(); }
};
document.onkeydown = event => {
  if (event.key === "Escape" && !at("drawer").hidden) at("close").click();
};
translate();
