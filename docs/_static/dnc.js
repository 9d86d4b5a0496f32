// For keyboards and screen readers: what scrolls sideways can be reached by Tab, and parts have levels and names.
addEventListener("load", () => {
  for (const part of document.querySelectorAll("article pre, article .table-wrapper")) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
  }
  for (const caption of document.querySelectorAll("[role=heading]:not([aria-level])")) {
    caption.setAttribute("aria-level", "2");
  }
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "On this page");
});
