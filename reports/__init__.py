"""Tables over registered runs, and their rendering for print, web, spreadsheet and terminal."""
