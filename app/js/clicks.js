// Buttons that say what they do: <button data-action="..." data-id="...">. While an answer is on its way Gradio drops
// further events; here they wait for their turn, so that no quick click is lost.
const waiting = [];
let timer = 0, sent = 0, begun = true; // begun: the answer to the last one is seen to be on its way, or over
element.dataset.clicks = "";
function busy() {
  const tab = element.closest("[role=tabpanel]") || document;
  return [...tab.querySelectorAll(".html-container.pending")].some((one) => one.querySelector("[data-clicks]"));
}
function send() {
  timer = 0;
  if (busy()) begun = true;
  else if (waiting.length && (begun || Date.now() - sent > 600)) {
    trigger("select", waiting.shift());
    sent = Date.now();
    begun = false;
  }
  if (waiting.length || (!begun && Date.now() - sent < 600)) timer = setTimeout(send, 15);
}
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-action]");
  if (!button || (button.dataset.action === "really" && event.detail > 1)) return; // a double click asks, and no more
  waiting.push({ action: button.dataset.action, id: button.dataset.id || "" });
  if (!timer) send();
});
// A key held down is one press.
element.addEventListener("keydown", (event) => {
  if (event.repeat && [" ", "Enter"].includes(event.key) && event.target.closest("[data-action]")) event.preventDefault();
});
// Arrow keys walk through a grid of cards.
element.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 0, ArrowUp: 0 }[event.key];
  const card = event.target.closest(".card");
  if (step === undefined || !card) return;
  const cards = [...element.querySelectorAll(".card")];
  const top = cards[0].getBoundingClientRect().top;
  const columns = cards.filter((one) => one.getBoundingClientRect().top === top).length;
  const by = step || (event.key === "ArrowDown" ? columns : -columns);
  const next = cards[cards.indexOf(card) + by];
  if (next) next.focus();
  event.preventDefault();
});
