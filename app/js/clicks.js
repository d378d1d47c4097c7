// Buttons that say what they do: <button data-action="..." data-id="...">.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-action]");
  if (button) trigger("select", { action: button.dataset.action, id: button.dataset.id || "" });
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
