// Buttons that say what they do, as in clicks.js, but none waits for its turn: it would label a picture not yet seen.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-action]");
  if (button) trigger("select", { action: button.dataset.action, id: button.dataset.id || "" });
});
// Keys press the button that bears them, while this tab is shown and nobody is typing.
const press = (event) => {
  if (!element.isConnected) { document.removeEventListener("keydown", press); return; }
  const typing = event.target.closest("input, textarea, select, [contenteditable=true]");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || element.offsetParent === null) return;
  const button = element.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (!button) return;
  event.preventDefault();
  if (!event.repeat) button.click(); // a key held down is one press
};
document.addEventListener("keydown", press);
element.addEventListener("keydown", (event) => {
  if (event.repeat && [" ", "Enter"].includes(event.key) && event.target.closest("[data-action]")) event.preventDefault();
});
