"""What everybody outside the cluster needs: to ask nodes, to check what they answer, and to try again."""
